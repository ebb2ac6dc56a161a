"""The environment variables: read in one module, checked, and listed in one document."""

import re
from pathlib import Path

import pytest
from support.helpers import SOURCE

from pxfast.base import environment
from pxfast.base.durations import keep_time, last_time
from pxfast.base.files import check_output_folder
from pxfast.engines import cpu
from pxfast.engines.compiled import ORDERS, order_of
from pxfast.engines.registry import ENGINES
from pxfast.engines.settings import DecodeSettings

READERS = {
    "PXFAST_THREADS": environment.threads,
    "PXFAST_ORDER": environment.order,
    "PXFAST_CUDA_TEAM": environment.cuda_team,
    "PXFAST_CUDA_CLUSTERS": environment.cuda_clusters,
    "PXFAST_CUDA_WGMMA": environment.cuda_wgmma,
    "PXFAST_TRIAL": environment.trial,
}
NAME = re.compile(r"\bPXFAST_[A-Z_]+")


@pytest.mark.parametrize("variable", READERS)
@pytest.mark.parametrize("value", ["-1", "two", "0.5"])
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} must be .*'{value}'"):
        READERS[variable]()


@pytest.mark.parametrize("variable", ["PXFAST_THREADS", "PXFAST_CUDA_TEAM"])
@pytest.mark.parametrize("value", ["0", "65537", "9" * 21, "9" * 5000])
def test_a_count_out_of_its_range_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=rf"{variable} must be an integer in 1\.\.65536, got '{value[:60]}'"):
        READERS[variable]()
    monkeypatch.setenv(variable, "65536")
    assert READERS[variable]() == 65536


@pytest.mark.parametrize("variable", READERS)
def test_nothing_and_an_empty_text_are_the_default(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable, raising=False)
    default = READERS[variable]()
    monkeypatch.setenv(variable, "")
    assert READERS[variable]() == default
    assert default in (None, "auto", True, False)


@pytest.mark.skipif(ENGINES["cpu"].unavailable() is not None, reason="there is no compiled module")
def test_an_argument_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PXFAST_THREADS", "3")
    monkeypatch.setenv("PXFAST_ISA", "portable")
    monkeypatch.setenv("PXFAST_ORDER", "sequential")
    assert (cpu.threads_of(), cpu.isa_of(), order_of(DecodeSettings())) == (3, "portable", ORDERS["sequential"])
    best = cpu.compiled._C.cpu_isas()[0]
    settings = DecodeSettings(threads=2, isa=best, order="speculative")
    assert (cpu.threads_of(settings), cpu.isa_of(settings), order_of(settings)) == (2, best, ORDERS["speculative"])
    monkeypatch.setenv("PXFAST_ISA", "avx1024")
    with pytest.raises(ValueError, match=r"PXFAST_ISA must be one of .*'avx1024'"):
        cpu.isa_of()


def test_files_of_the_user_lie_where_the_variables_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PXFAST_TILES", raising=False)
    assert environment.cache_folder() == tmp_path / "cache" / "pxfast"
    assert environment.tiles_file() == tmp_path / "config" / "pxfast" / "tiles.json"
    monkeypatch.setenv("PXFAST_TILES", str(tmp_path / "mine.json"))
    assert environment.tiles_file() == tmp_path / "mine.json"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert environment.cache_folder() == tmp_path / ".cache" / "pxfast", "it would be another one in every folder"


def test_where_there_is_no_home_nothing_is_kept_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "PXFAST_TILES"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    keep_time("compiling a", 292.0)
    assert last_time("compiling a") is None
    assert not environment.tiles_file().exists()
    with pytest.raises(NotADirectoryError):
        check_output_folder(environment.tiles_file().parent)


def test_the_package_reads_the_environment_in_one_module() -> None:
    """torchrun's and Triton's own variables are read where their meaning is."""
    others = {"training/processes.py": {"WORLD_SIZE", "LOCAL_RANK", "RANK"}, "engines/triton.py": {"TRITON_INTERPRET"}}
    for file in sorted((SOURCE / "pxfast").rglob("*.py")):
        name = str(file.relative_to(SOURCE / "pxfast"))
        if name == "base/environment.py":
            continue
        text = file.read_text(encoding="utf-8")
        read = set(re.findall(r"(?:environ(?:\.get)?|getenv)[\[(]['\"](\w+)['\"]", text))
        assert read == others.get(name, set()), name
        assert "environ[" not in text, f"{name} sets the environment"


def test_every_variable_stands_in_the_document() -> None:
    """Those of the package, of the build and of the tests, and no others."""
    document = (SOURCE / "docs" / "environment.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(PXFAST_[A-Z_]+)", document, flags=re.MULTILINE))
    used = set()
    for file in [*SOURCE.glob("*.py"), *(SOURCE / "pxfast").rglob("*.py"), *(SOURCE / "tests").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        read = r"(?:environ(?:\.get)?|getenv|_positive|_switch)[\[(]\s*['\"](PXFAST_[A-Z_]+)"
        used |= set(re.findall(read, text))
    assert {"PXFAST_THREADS", "PXFAST_ISA", "PXFAST_CUDA", "PXFAST_DATA"} <= used
    assert listed == used


def test_benches_and_tests_change_no_environment() -> None:
    for file in [*(SOURCE / "bench").rglob("*.py"), *(SOURCE / "tests").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        if file != Path(__file__):
            assert not re.search(r"os\.environ(\[[^\]]+\] *=[^=]|\.update|\.pop| *\|=)|del os\.environ", text), file
