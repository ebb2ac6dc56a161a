"""Builds the compiled module pxfast._C; everything else about the package is in pyproject.toml.

Environment: CXX picks the compiler, CPPFLAGS, CXXFLAGS and LDFLAGS are added to the build's own flags,
PXFAST_CUDA=0|1 forces the CUDA part off or on, PXFAST_CUDA_ARCHS=80,90a picks its GPU architectures,
PXFAST_SANITIZE=address,undefined makes a checking build. PXFAST_PROJECT_URL is where the repository is published: the
package's page links there.
"""

import itertools
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
X86 = ["-march=x86-64"]  # in the place of a -march in CXXFLAGS, which would have all sets become one
AVX2 = [*X86, "-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# csrc/cpu/isa_NAME.cpp alone may use an instruction set's instructions; which of them runs is decided at run time
AVX512BF16 = [*AVX512, "-mavx512bf16"]
AVX512AMX = [*AVX512BF16, "-mamx-tile", "-mamx-bf16"]
X86_SETS = {"avx512amx": AVX512AMX, "avx512bf16": AVX512BF16, "avx512": AVX512, "avx2": AVX2}
ARM_SETS = {"neonbf16": ["-march=armv8.2-a+bf16"], "neon": []}
WRAPPERS = {"ccache", "sccache", "distcc", "icecc"}  # of a compiler, which nvcc can't call through them
DEFAULT_CUDA_ARCHS = "80,86,89,90a,100"


def compiles(compiler, *flags, code="int main() {}"):
    """Whether the compiler turns ``code`` into an object file."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(code)
        command = [*compiler, "-std=c++17", *flags, "-c", str(source), "-o", str(source.with_suffix(".o"))]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            return False


def find_compiler():
    """The command of a C++17 compiler: $CXX, or the first of c++, g++, clang++ that works."""
    code = "#include <optional>\n#include <string_view>\nint main() { if constexpr (true) {} }"
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["c++", "g++", "clang++"]:
        if compiles(shlex.split(name), code=code):
            return shlex.split(name)
    tried = f"CXX={chosen}" if chosen else "c++, g++ and clang++"
    raise SystemExit(f"pxfast needs a C++17 compiler, and none of these worked: {tried}; install g++ or set CXX")


def instruction_sets(compiler):
    """The flags of each instruction set that this build holds beside the portable code, by its name."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        known, code = X86_SETS, "#include <immintrin.h>\nint main() {}"
    elif machine in ("aarch64", "arm64"):
        known, code = ARM_SETS, "#include <arm_neon.h>\nint main() {}"
    else:
        return {}
    usable = {name: flags for name, flags in known.items() if compiles(compiler, *flags, code=code)}
    if missing := known.keys() - usable.keys():
        print(f"pxfast: the compiler does not know {', '.join(sorted(missing))}, which are left out", flush=True)
    return usable


def flags_of_environment(*names):
    """The words of these variables, which a user or a packager sets for all builds."""
    try:
        return [word for name in names for word in shlex.split(os.environ.get(name, ""))]
    except ValueError as error:
        raise SystemExit(f"{', '.join(names)} must be flags as a shell has them: {error}") from None


def for_the_linker_of_nvcc(flag):
    """A flag of the link as nvcc passes it on; it takes commas for separators."""
    return f"-Xlinker={flag.removeprefix('-Wl,')}" if flag.startswith("-Wl,") else f"-Xcompiler={flag}"


def find_nvcc(sources):
    """nvcc's path when the CUDA sources are to be compiled, else None."""
    wish = os.environ.get("PXFAST_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"PXFAST_CUDA must be 0 or 1, got {wish!r}")
    if wish == "1" and not sources:
        print("pxfast: PXFAST_CUDA=1 changes nothing, because this version has no CUDA sources", flush=True)
    if not sources or wish == "0":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(home, "bin"))
    if nvcc is None and wish == "1":
        raise SystemExit(f"PXFAST_CUDA=1 asks for the CUDA engine, but nvcc is neither on PATH nor under {home}")
    if nvcc is None:
        print("pxfast: nvcc was not found, so the CUDA engine is left out; the CPU engine is complete", flush=True)
    return nvcc


def cuda_arch_flags(nvcc):
    """Machine code for each architecture, and PTX of the newest plain one for GPUs to come."""
    wish = os.environ.get("PXFAST_CUDA_ARCHS")
    archs = (wish or DEFAULT_CUDA_ARCHS).replace(" ", "").split(",")
    if not wish:  # an older nvcc does not know the newest architectures
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
        archs = [arch for arch in archs if f"compute_{arch.rstrip('af')}" in known]
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    plain = [arch for arch in archs if arch.isdigit()]
    if plain:
        newest = max(plain, key=int)
        flags.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return flags


def host_flags(compiler):
    """What nvcc is told of a host compiler's command: the program without its wrapper, and the command's own flags."""
    program, *flags = itertools.dropwhile(lambda word: Path(word).name in WRAPPERS, compiler)
    return [f"-ccbin={program}", *(f"-Xcompiler={flag}" for flag in flags)]


def ninja_file(target):
    """The text of the build file that makes ``target`` from csrc/."""
    import pybind11

    compiler = find_compiler()
    sources = [ROOT / "csrc" / "bindings.cpp"]
    sources += [path for folder in ("common", "cpu") for path in sorted((ROOT / "csrc" / folder).glob("*.cpp"))]
    cuda_sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    sanitize = os.environ.get("PXFAST_SANITIZE")
    checks = [f"-fsanitize={each}" for each in sanitize.split(",")] if sanitize else []  # nvcc splits at commas
    common = ["-O1", "-g", "-fno-omit-frame-pointer", *checks] if sanitize else ["-O3"]
    common = [
        "-std=c++17",
        *common,
        "-fPIC",
        "-fvisibility=hidden",
        "-ffp-contract=off",  # fused multiply-adds are written out, so that every loop rounds alike
        "-Wall",
        "-Wextra",
        "-pthread",
        f"-I{ROOT / 'csrc'}",
    ]
    sets = instruction_sets(compiler)
    flags_of = {f"isa_{name}.cpp": flags for name, flags in sets.items()}
    if X86_SETS.keys() & sets:
        flags_of["isa_portable.cpp"] = X86
    absent = {f"isa_{name}.cpp" for name in (*X86_SETS, *ARM_SETS)} - flags_of.keys()
    sources = [path for path in sources if path.name not in absent]
    common += [f"-DPXFAST_HAS_{name.upper()}" for name in sets]
    nvcc = find_nvcc(cuda_sources)
    given, given_to_link = flags_of_environment("CPPFLAGS", "CXXFLAGS"), flags_of_environment("LDFLAGS")
    python_flags = ["-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]
    if nvcc:
        python_flags.append("-DPXFAST_WITH_CUDA")
        sources += sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))
    # only the bindings see Python: the rest is plain C++ and keeps its objects when the build environment moves
    flags_of["bindings.cpp"] = python_flags
    digest = runpy.run_path(str(ROOT / "pxfast" / "base" / "sources.py"))["digest_of"](ROOT / "csrc")
    flags_of["sources.cpp"] = [f'-DPXFAST_SOURCES="{digest}"']
    link = ["-shared", "-pthread", *checks]
    link += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    link += given_to_link
    linker = compiler
    rules, builds, objects = [], [], []

    def compile_rule(name, command):
        command += " $flags -MD -MF $out.d -c $in -o $out"
        rules.append(f"rule {name}\n  command = {command}\n  depfile = $out.d\n  deps = gcc")

    def compile_file(rule, source, flags):
        objects.append(f"{source.parent.name}_{source.stem}.o")
        builds.append(f"build {objects[-1]}: {rule} {escape(source)}\n  flags = {words(flags)}")

    compile_rule("cxx", words([*compiler, *common, *given]))
    for source in sources:
        compile_file("cxx", source, flags_of.get(source.name, []))
    if nvcc:
        host = [f"-Xcompiler={flag}" for flag in common[1:] if not flag.startswith(("-I", "-D", "-O"))]
        plain = [flag for flag in common if flag.startswith(("-D", "-O", "-std"))]
        plain.append("-I../../csrc")  # from the folder where ninja runs: nvcc divides a path that has a comma
        wrapper = [nvcc, *host_flags(compiler)]
        host += [f"-Xcompiler={flag}" for flag in given if "," not in flag]  # which nvcc takes for a separator
        compile_rule("nvcc", words([*wrapper, *plain, *host, *cuda_arch_flags(nvcc)]))
        for source in cuda_sources:
            compile_file("nvcc", source, [])
        linker = [*wrapper, "-cudart=static"]
        link = [link[0], *map(for_the_linker_of_nvcc, link[1:])]
    rules.append(f"rule link\n  command = {words(linker)} $in -o $out {words(link)}")
    builds.append(f"build {escape(target)}: link {' '.join(objects)}")
    return "\n".join(["ninja_required_version = 1.8", *rules, *builds, ""])


def words(command):
    """Words of a command as ninja wants them, which hands them to a shell: a folder's name may have a $ in it."""
    return shlex.join(command).replace("$", "$$")


def escape(path):
    """A path as ninja wants it."""
    return re.sub(r"([$ :])", r"$\1", str(path))


class NinjaBuild(build_ext):
    """Compiles in build/, which is kept, so that the next install compiles only what changed."""

    def build_extension(self, ext):
        import ninja

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = ROOT / "build" / f"ninja-{sysconfig.get_config_var('SOABI')}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(target))
        if subprocess.run([os.path.join(ninja.BIN_DIR, "ninja")], cwd=folder).returncode != 0:
            raise SystemExit("pxfast's compiled module could not be built; the compiler's messages are above")


class EditableWheel(editable_wheel):
    """Puts the checkout on the path by a plain .pth file, which type checkers and editors read as Python does.

    A package that lies elsewhere than its name says would have setuptools install an import hook, which they don't run.
    In a checkout ``pxfast/kernels`` is a link to where the kernels lie, so that no package does.
    """

    def finalize_options(self):
        if (ROOT / "pxfast" / "kernels" / "__init__.py").is_file():
            self.distribution.package_dir = {"": ""}
        super().finalize_options()


def published(url):
    """The README and the links of the package's page, given the repository's address, or none.

    On the page of a package index, a link to a file of the repository leads nowhere unless it is absolute.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if not url:
        return readme, {}
    if not url.startswith("https://"):
        raise SystemExit(f"PXFAST_PROJECT_URL must begin with https://, got {url!r}")
    url = url.rstrip("/")
    readme = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{url}/raw/main/", readme)
    readme = re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{url}/blob/main/", readme)
    pages = {"Documentation": "blob/main/docs/guide.md", "Changelog": "blob/main/CHANGELOG.md", "Issues": "issues"}
    return readme, {"Source": url, **{name: f"{url}/{page}" for name, page in pages.items()}}


if sys.platform == "win32":  # before a compiler is asked for in vain
    raise SystemExit("pxfast runs on Linux and macOS, not on Windows; there it can be installed in WSL")

README, URLS = published(os.environ.get("PXFAST_PROJECT_URL", ""))

# setuptools names an SPDX expression so since 77, and ignores it before
EXPRESSION = "license_expression" if int(setuptools.__version__.partition(".")[0]) >= 77 else "license"

setup(
    **{EXPRESSION: "Apache-2.0"},
    license_files=["LICENSE"],
    long_description=README,
    long_description_content_type="text/markdown",
    project_urls=URLS,
    packages=[*find_packages(include=["pxfast", "pxfast.*"]), "pxfast.kernels"],
    package_dir={"pxfast.kernels": "kernels"},
    ext_modules=[Extension("pxfast._C", ["csrc/bindings.cpp"])],
    cmdclass={"build_ext": NinjaBuild, "editable_wheel": EditableWheel},
)
