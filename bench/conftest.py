"""Options of the benchmark suite, and the table that closes it."""

import dataclasses

import pytest

from pxfast.engines.benchmark import Row, table
from pxfast.engines.settings import DecodeSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pxfast")
    group.addoption("--images", type=int, default=None, help="images per batch (default: by network)")
    group.addoption("--rounds", type=int, default=3, help="decodes per row; the median counts (default: 3)")
    group.addoption("--threads", type=int, default=None, help="threads (default: the processors one may use)")


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> DecodeSettings:
    """Threads of engine and matrix product alike."""
    return DecodeSettings(threads=request.config.getoption("threads"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    benchmarks = session.benchmarks if session is not None else []
    fields = [field.name for field in dataclasses.fields(Row)]
    measured = [benchmark.extra_info for benchmark in benchmarks if "images_per_second" in benchmark.extra_info]
    if measured:
        terminalreporter.section("purification against the machine's matrix-product rate")
        terminalreporter.write_line(table([Row(**{name: info[name] for name in fields}) for info in measured]))
