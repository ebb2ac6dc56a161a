"""Building the compiled module: off x86 without a warning, and with one clear sentence where it can't be built."""

import os
import platform
import re
import runpy
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from support import building
from support.building import PORTABLE, compile_commands, object_of
from support.helpers import SOURCE

NEON = {"isa_neon.cpp", "isa_neonbf16.cpp"}
AARCH64 = 183  # in the header of an ELF file


@pytest.mark.compile
@pytest.mark.parametrize(
    ("compiler", "machine", "sources"),
    [
        ("g++", "riscv64", PORTABLE),
        ("clang++", "riscv64", PORTABLE),
        ("aarch64-linux-gnu-g++", "aarch64", PORTABLE | NEON),
    ],
)
def test_off_x86_the_sources_compile_without_a_warning(compiler, machine, sources, tmp_path_factory):
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler} here")
    commands = compile_commands(compiler, machine)
    assert set(commands) == sources
    for source, command in commands.items():
        assert "-Wall" in command
        made, said = object_of(tmp_path_factory, command)
        assert not said, f"{source}:\n{said}"
        if machine == "aarch64":
            assert struct.unpack_from("<H", made.read_bytes(), 18)[0] == AARCH64
            assert command == compile_commands(compiler, "arm64")[source], "as macOS calls it"


@pytest.mark.compile  # the compiler is asked what it knows
def test_a_set_that_the_compiler_does_not_know_is_left_out(capsys):
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    other = "x86_64" if platform.machine() in ("aarch64", "arm64") else "aarch64"  # its headers are not here
    assert set(compile_commands("g++", other)) == PORTABLE
    assert "which are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("compiler", "expected"),
    [
        ("g++", ["-ccbin=g++"]),
        ("g++ -m64", ["-ccbin=g++", "-Xcompiler=-m64"]),
        ("ccache /usr/bin/g++-13", ["-ccbin=/usr/bin/g++-13"]),
        ("/usr/bin/sccache distcc g++ -m64 -pipe", ["-ccbin=g++", "-Xcompiler=-m64", "-Xcompiler=-pipe"]),
    ],
)
def test_nvcc_is_told_the_compiler_itself_and_its_flags(monkeypatch, compiler, expected):
    setuptools = pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    assert runpy.run_path(str(SOURCE / "setup.py"))["host_flags"](compiler.split()) == expected


@pytest.mark.compile
def test_on_x86_only_the_files_of_an_instruction_set_may_use_it():
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("this compiler does not know x86's instruction sets")
    commands = compile_commands("g++", "x86_64")
    assert PORTABLE | {"isa_avx2.cpp", "isa_avx512.cpp"} <= set(commands)
    for source, command in commands.items():
        machine = {flag for flag in command if flag.startswith("-m")} - {"-march=x86-64"}
        assert bool(machine) == (source not in PORTABLE), f"{source}: {machine}"
        assert ("-mavx512f" in machine) == source.startswith("isa_avx512"), f"{source}: {machine}"


@pytest.mark.compile
@pytest.mark.parametrize(("tools", "machine"), [("", platform.machine()), ("aarch64-linux-gnu-", "aarch64")])
def test_the_builds_of_an_instruction_set_share_no_function(tools, machine, tmp_path):
    """The linker keeps one copy of a shared function, and it might be the one that an older machine can't run."""
    if shutil.which(f"{tools}g++") is None or shutil.which(f"{tools}nm") is None:
        pytest.skip(f"there is no {tools}g++ or no {tools}nm here")
    commands = compile_commands(f"{tools}g++", machine)
    builds = {source: command for source, command in commands.items() if source.startswith("isa_")}
    assert builds
    for source, command in builds.items():
        # without optimisation nothing is inlined, so that every function shows
        subprocess.run(["-O0" if word == "-O3" else word for word in command], cwd=tmp_path, check=True)
        listing = [f"{tools}nm", "-C", "--defined-only", "--extern-only", str(tmp_path / command[-1])]
        symbols = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        shared = [line.split(maxsplit=2)[2] for line in symbols.splitlines()]
        shared = [name for name in shared if not name.startswith("DW.ref.")]  # a pointer into the runtime, no code
        isa = source.removeprefix("isa_").removesuffix(".cpp")
        assert sorted(shared) == [f"pxfast::kBackendBf16_{isa}", f"pxfast::kBackendFp32_{isa}"]


@pytest.mark.parametrize(
    ("version", "name"), [("64.0.0", "license"), ("76.1.0", "license"), ("77", "license_expression")]
)
def test_a_setuptools_of_either_kind_is_given_the_licence(monkeypatch, version, name):
    """One that is older than the expressions of PEP 639 comes with many a machine without network."""
    setuptools = pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    given: dict[str, object] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    monkeypatch.setattr(setuptools, "__version__", version)
    runpy.run_path(str(SOURCE / "setup.py"))
    assert {key: value for key, value in given.items() if key.startswith("license")} == {
        name: "Apache-2.0",
        "license_files": ["LICENSE"],
    }
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    assert "license" in project["dynamic"]
    assert not project.keys() & {"license", "license-files"}, "it takes a table for the one, and knows no other"


def failing_build(folder: Path, **changes: str) -> str:
    """The error message of ``setup.py build_ext`` on a copy of the sources, which must fail."""
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(SOURCE / name, folder)
    shutil.copytree(SOURCE / "csrc", folder / "csrc")
    (folder / "kernels").mkdir()
    (folder / "pxfast" / "base").mkdir(parents=True)
    shutil.copy(SOURCE / "pxfast" / "base" / "version.py", folder / "pxfast" / "base")
    # pip installs these two for the build alone; the failures here come before their first use
    modules = folder / "modules"
    modules.mkdir()
    (modules / "ninja.py").write_text("BIN_DIR = ''\n")
    (modules / "pybind11.py").write_text("def get_include():\n    return ''\n")
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(modules), **changes},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert not list(folder.glob("pxfast/_C*"))
    return done.stderr


@pytest.mark.process
def test_without_a_compiler_the_build_says_so(tmp_path):
    errors = failing_build(tmp_path, CXX="/nonexistent").strip().splitlines()
    assert errors[-1] == (
        "pxfast needs a C++17 compiler, and none of these worked: CXX=/nonexistent; install g++ or set CXX"
    )


@pytest.mark.process
def test_a_wrong_choice_about_cuda_is_named(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    errors = failing_build(tmp_path, CXX="g++", PXFAST_CUDA="perhaps").strip().splitlines()
    assert errors[-1] == "PXFAST_CUDA must be 0 or 1, got 'perhaps'"


@pytest.mark.compile  # the compiler is asked what it knows
def test_flags_of_the_environment_come_after_the_builds_own(monkeypatch):
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    monkeypatch.setenv("CPPFLAGS", "-DMINE='a b'")
    monkeypatch.setenv("CXXFLAGS", "-O2 -fno-plt")
    command = compile_commands("g++", "riscv64")["engine.cpp"]
    assert command.index("-O3") < command.index("-DMINE=a b") < command.index("-O2") < command.index("-fno-plt")


@pytest.mark.compile
def test_the_sources_may_lie_in_a_folder_of_any_name(monkeypatch, tmp_path):
    """ninja took a $ in it for a variable's, which is empty, and the compiler found no header."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    folder = tmp_path / "it's $HOME of mine"
    for name in ("setup.py", "README.md", "pxfast/base/sources.py", "csrc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if name == "csrc" else shutil.copy)(SOURCE / name, folder / name)
    monkeypatch.setattr(building, "SOURCE", folder)
    monkeypatch.setenv("LDFLAGS", "-Wl,-rpath,$ORIGIN")
    for source, command in building.compile_commands("g++", "riscv64").items():
        assert f"-I{folder}/csrc" in command, source
        assert any(str(path) in command for path in folder.glob(f"csrc/*/{source}")), source


@pytest.mark.compile
def test_a_processor_in_the_flags_of_the_environment_changes_no_instruction_set(monkeypatch):
    """With -march=native the portable build and AVX2's held AVX-512, and gave its bits under their own names."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("this compiler does not know x86's instruction sets")
    monkeypatch.setenv("CXXFLAGS", "-march=skylake-avx512")
    for source, command in compile_commands("g++", "x86_64").items():
        if source.startswith("isa_"):
            asked = [*command[: command.index("-MD")], "-dM", "-E", "-x", "c++", os.devnull]
            macros = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
            assert ("__AVX512F__" in macros) == source.startswith("isa_avx512"), source
            assert ("__AVX2__" in macros) == (source != "isa_portable.cpp"), source


@pytest.fixture
def setup_py(monkeypatch):
    """The names of setup.py."""
    setuptools = pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    return lambda: runpy.run_path(str(SOURCE / "setup.py"))


def test_flags_of_the_link_are_passed_on_and_wrong_ones_are_named(setup_py, monkeypatch):
    names = setup_py()
    monkeypatch.setenv("LDFLAGS", "-Wl,-z,relro -L/here '-Wl,-rpath,$ORIGIN'")
    assert names["flags_of_environment"]("LDFLAGS") == ["-Wl,-z,relro", "-L/here", "-Wl,-rpath,$ORIGIN"]
    passed = [names["for_the_linker_of_nvcc"](flag) for flag in ("-Wl,-z,relro", "-L/here")]
    assert passed == ["-Xlinker=-z,relro", "-Xcompiler=-L/here"]
    monkeypatch.setenv("LDFLAGS", "'")
    with pytest.raises(SystemExit, match="LDFLAGS must be flags as a shell has them: No closing quotation"):
        names["flags_of_environment"]("LDFLAGS")


def test_nvcc_is_told_of_every_sanitizer_alone(setup_py, monkeypatch, tmp_path):
    """It takes a comma for the end of a flag, and gave the compiler a file called 'undefined'. A comma in the path of
    the sources would divide it, too: there is no such path among the flags.
    """
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    monkeypatch.setitem(sys.modules, "pybind11", types.SimpleNamespace(get_include=lambda: ""))
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho compute_80\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setenv("PXFAST_CUDA", "1")
    monkeypatch.setenv("PXFAST_SANITIZE", "address,undefined")
    text = setup_py()["ninja_file"](Path("_C.so"))
    assert not [word for word in re.search(r"rule nvcc\n  command = (.*)", text)[1].split() if str(SOURCE) in word]
    for rule in ("nvcc", "link"):
        command = re.search(rf"rule {rule}\n  command = (.*)", text)[1].split()
        assert [word for word in command if "sanitize" in word] == [
            "-Xcompiler=-fsanitize=address",
            "-Xcompiler=-fsanitize=undefined",
        ]


def test_windows_is_refused_by_its_name(setup_py, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="pxfast runs on Linux and macOS, not on Windows"):
        setup_py()
