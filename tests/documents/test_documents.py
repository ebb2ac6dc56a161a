"""What the documents show is so: their Python runs, their commands and options exist, and so do the files they name."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from support.helpers import SOURCE, bundled_images
from torch.utils.data import TensorDataset

from pxfast.cli.main import app
from pxfast.pixelcnn.shipped import SHIPPED

DOCUMENTS = sorted(
    [*SOURCE.glob("*.md"), *(SOURCE / "docs").glob("*.md"), *(SOURCE / "bench").glob("*.md")],
    key=lambda path: path.relative_to(SOURCE),
)
IDS = [str(path.relative_to(SOURCE)) for path in DOCUMENTS]
GLOBALS = ("--help", "--version")


def code_blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[str]:
    """The `pxfast ...` commands within a document's text and its shell blocks."""
    lines = [line for block in code_blocks(document, "sh") for line in re.split(r"\n|&&", block)]
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines += [inline.replace("\n", " ") for inline in re.findall(r"`([^`]+)`", prose)]
    return [line.strip() for line in lines if line.strip().startswith("pxfast ")]


def check_command(line: str) -> None:
    """ValueError for a subcommand or an option that ``pxfast`` does not have."""
    command = typer.main.get_command(app)
    for word in shlex.split(line, comments=True)[1:]:
        if hasattr(command, "commands") and not word.startswith("-"):
            # TABLE in capitals stands for any of them
            found = next(iter(command.commands.values())) if word.isupper() else command.commands.get(word)
            if found is None:
                raise ValueError(f"{line!r}: there is no {word!r}, but {', '.join(command.commands)}")
            command = found
        elif word.startswith("--"):
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            if word.split("=")[0] not in {*known, *GLOBALS}:
                raise ValueError(f"{line!r}: there is no {word!r}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_commands_and_their_options_exist(document: Path) -> None:
    for line in commands(document):
        check_command(line)


def test_the_commands_are_found_and_a_wrong_one_is_seen() -> None:
    assert len(commands(SOURCE / "README.md")) > 15
    for line in ("pxfast purify IN OUT --epsilon 16", "pxfast purge IN OUT", "pxfast evaluate table3"):
        with pytest.raises(ValueError, match="there is no"):
            check_command(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_the_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text()
    folders, endings = "pxfast|csrc|kernels|bench|tests|docs", "py|cpp|cuh?|h|sh|md|json|html|png"
    paths = re.findall(rf"\b((?:{folders})/[\w./-]+\.(?:{endings}))\b", text)
    missing = {path for path in paths if not (SOURCE / path).exists()}
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    missing |= {link for link in links if not (document.parent / link).exists()}
    assert not missing


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the README's Python takes for granted: images, labels and a model of one's own in the current folder."""
    shutil.copy(SHIPPED["cifar10"], tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    images = bundled_images(3)[:2]
    return {"batch": images, "images_uint8": images, "labels": torch.tensor([3, 8])}


def test_the_python_of_the_readme_runs(given: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    blocks = code_blocks(SOURCE / "README.md", "python")
    assert len(blocks) == 2
    for block in blocks:
        exec(block, given)
    names = SimpleNamespace(**given)
    assert "regret" in capsys.readouterr().out
    assert names.purified.shape == names.batch.shape
    assert (names.purified.int() - names.batch.int()).abs().max() <= 16
    assert names.images.shape == (64, 3, 32, 32)
    assert (names.broken.int() - names.batch.int()).abs().max() <= 8
    assert names.averaged(names.batch).shape == (2, 10)


def test_the_python_of_data_loaders_runs() -> None:
    blocks = code_blocks(SOURCE / "docs" / "pipelines.md", "python")
    namespace: dict[str, object] = {"dataset": TensorDataset(bundled_images(1)[:3], torch.arange(3))}
    exec(blocks[0], namespace)
    ((images, labels),) = namespace["loader"]
    assert images.shape == (3, 1, 28, 28)
    assert labels.tolist() == [0, 1, 2]
    exec(blocks[1], namespace)
    assert namespace["dataset"].transform is not None


def test_the_python_of_attack_libraries_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = code_blocks(SOURCE / "docs" / "attack-libraries.md", "python")
    namespace: dict[str, object] = {"images_uint8": bundled_images(1)[:2], "labels": torch.tensor([9, 2])}
    exec(blocks[0], namespace)
    exec(blocks[2].replace("steps=100", "steps=3"), namespace)  # the libraries of blocks[1]: test_interfaces.py
    assert namespace["result"].queries.max() <= 50
    assert capsys.readouterr().out
