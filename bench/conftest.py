"""Options of the benchmark suite, and the table that closes it."""

import os

import pytest

from pxfast.engines import cpu


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pxfast")
    group.addoption("--images", type=int, default=None, help="images per batch (default: by network)")
    group.addoption("--threads", type=int, default=None, help="threads (default: the processors one may use)")


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> int:
    """Threads of engine and matrix product alike."""
    wish = request.config.getoption("threads")
    if wish is not None:
        os.environ["PXFAST_THREADS"] = str(wish)
    return cpu.current_threads()


COLUMNS = ("network", "engine", "precision", "isa", "threads", "batch", "images/s", "matrix GFLOP/s", "of limit")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    benchmarks = session.benchmarks if session is not None else []
    rows = [benchmark.extra_info for benchmark in benchmarks if "images_per_second" in benchmark.extra_info]
    if not rows:
        return
    table = [COLUMNS]
    for info in rows:
        table.append(
            (
                info["network"],
                info["engine"],
                info["precision"],
                info["isa"],
                str(info["threads"]),
                str(info["batch"]),
                f"{info['images_per_second']:.3g}",
                f"{info['matrix_gflops']:.0f}",
                f"{100 * info['fraction_of_limit']:.0f} %",
            )
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    terminalreporter.section("purification against the machine's matrix-product rate")
    for row in table:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
