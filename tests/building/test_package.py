"""The package as it is published: its page, its sdist, its extras, and what a plain use of it imports."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support.helpers import SOURCE, environment

import pxfast

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
URL = "https://example.org/team/pxfast"
# all that `import pxfast` and purify() may need; the rest of what pip installs is for the command line and the pictures
NEEDED = {"torch", "numpy", "safetensors", "tqdm"}
WITHOUT_THE_REST = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import pxfast

given = pxfast.sample(1, model="fashion-mnist", seed=0)
purified = pxfast.purify(given, eps=8)
assert pxfast.verify(given, purified, eps=8).mean_regret < 1e-3
defended = pxfast.Purifier(eps=8)(given)
assert pxfast.bits_per_dim(purified).item() < pxfast.bits_per_dim(given).item() + 1e-6
assert pxfast.Detector(model="fashion-mnist").p_value(given).shape == (1,)
assert pxfast.list_models() and pxfast.list_engines()
"""


def setup_options(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What setup.py hands to setuptools."""
    setuptools = pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    given: dict[str, object] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    runpy.run_path(str(SOURCE / "setup.py"))
    return given


def test_on_the_page_of_a_package_index_every_link_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PXFAST_PROJECT_URL", f"{URL}/")
    options = setup_options(monkeypatch)
    assert options["project_urls"] == {
        "Source": URL,
        "Documentation": f"{URL}/blob/main/docs/guide.md",
        "Changelog": f"{URL}/blob/main/CHANGELOG.md",
        "Issues": f"{URL}/issues",
    }
    page = str(options["long_description"])
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []
    for link in links:
        if link.startswith(URL):
            path = link.removeprefix(f"{URL}/").split("main/", 1)[1].partition("#")[0]
            assert (SOURCE / path).exists(), link
    assert f"({URL}/raw/main/docs/demo.png)" in page, "a picture is shown, not its page"


def test_without_an_address_the_page_is_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PXFAST_PROJECT_URL", raising=False)
    options = setup_options(monkeypatch)
    assert options["project_urls"] == {}
    assert options["long_description"] == (SOURCE / "README.md").read_text(encoding="utf-8")
    assert options["long_description_content_type"] == "text/markdown"


def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PXFAST_PROJECT_URL", "example.org")
    with pytest.raises(SystemExit, match=r"PXFAST_PROJECT_URL must begin with https://, got 'example\.org'"):
        setup_options(monkeypatch)


@pytest.mark.process
def test_an_sdist_holds_what_a_build_and_its_tests_need(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    if not (SOURCE / ".git").exists():
        pytest.skip("this is no checkout, so what belongs to it is not known")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=SOURCE, capture_output=True, text=True, check=True)
    tracked = [name for name in listing.stdout.split("\0") if name and (SOURCE / name).exists()]
    folder = tmp_path / "checkout"  # a build leaves folders behind
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / name, folder / name, follow_symlinks=False)
    done = subprocess.run(
        [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
        top = archive.getnames()[0].partition("/")[0]
        info = archive.extractfile(f"{top}/PKG-INFO")
        assert info is not None
        metadata = info.read().decode()
    left_out = {".ci", ".github", ".gitignore", ".dockerignore", "Dockerfile"}  # of the checkout alone
    wanted = {name for name in tracked if name.split("/")[0] not in left_out}
    wanted -= {"pxfast/kernels"}  # the link of a checkout to kernels/, which the sdist holds
    assert wanted - held == set()
    assert not [name for name in held if name.endswith((".so", ".pyc", ".o"))]
    assert "Description-Content-Type: text/markdown" in metadata
    assert "Requires-Python: >=3.10" in metadata


@pytest.mark.process
def test_purifying_needs_torch_numpy_safetensors_and_tqdm_alone(tmp_path: Path) -> None:
    requirements = [re.split(r"[^\w-]", line)[0] for line in PROJECT["dependencies"]]
    for extra in PROJECT["optional-dependencies"].values():
        requirements += [re.split(r"[^\w-]", line)[0] for line in extra]
    modules = {"pillow": "PIL", "scikit-learn": "sklearn", "adversarial-robustness-toolbox": "art", "jinja2": "jinja2"}
    absent = {modules.get(name, name.replace("-", "_")) for name in requirements} - NEEDED
    # torch asks whether Triton is there, and needs the two others itself
    absent -= {"triton", "setuptools", "typing_extensions", "jinja2", "pxfast"}
    assert {"typer", "torchvision", "PIL", "matplotlib", "scipy", "sklearn", "foolbox", "ray"} <= absent
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_REST.format(absent=sorted(absent))],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_extra_that_the_code_names_can_be_installed() -> None:
    extras = PROJECT["optional-dependencies"]
    named = set()
    for path in Path(pxfast.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"pxfast\[([\w-]+)\]", source))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                named |= {argument.value for argument in node.args[1:] if isinstance(argument, ast.Constant)}
    assert {"attacks", "evaluate", "art"} <= named
    assert named <= extras.keys()
    (everything,) = extras["all"]
    users = extras.keys() - {"all", "docs", "test"}
    assert everything == f"pxfast[{','.join(sorted(users))}]"


def test_the_citation_is_of_this_version() -> None:
    citation = (SOURCE / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {pxfast.__version__}\n" in citation
    assert "\nlicense: Apache-2.0\n" in citation


def test_wheels_are_built_for_every_python_that_is_promised() -> None:
    versions = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    wheels = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]["build"]
    assert wheels == [f"cp{version.replace('.', '')}-*" for version in versions]
    readme = (SOURCE / "README.md").read_text(encoding="utf-8")
    assert f"Python {versions[0]} to {versions[-1]}" in readme


def test_the_oldest_releases_allowed_are_tested() -> None:
    if not (SOURCE / ".git").exists():
        pytest.skip("this is no checkout, to which the pins belong")
    extras = PROJECT["optional-dependencies"]
    # the oldest releases of these extras go together; the page's libraries want newer ones
    wanted = [*PROJECT["dependencies"], *(each for name in ("attacks", "evaluate", "hub") for each in extras[name])]
    wanted += [each for each in extras["test"] if each.startswith("triton")]
    allowed = dict(each.partition(";")[0].strip().split(">=") for each in wanted)
    pins = [line for line in (SOURCE / ".ci" / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    assert dict(pin.split("==") for pin in pins) == allowed


def test_the_first_and_the_last_python_are_tested_on_every_change() -> None:
    if not (SOURCE / ".git").exists():
        pytest.skip("this is no checkout, to which the workflows belong")
    versions = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    workflow = (SOURCE / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: .ci/run\n" in workflow
    assert f'python: ["{versions[0]}", "{versions[-1]}"]' in workflow


def test_wheels_of_linux_know_where_the_project_is_published() -> None:
    settings = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    assert settings["linux"]["environment-pass"] == ["PXFAST_PROJECT_URL"]
