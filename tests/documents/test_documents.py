"""What the documents show is so: their Python runs, their commands and options exist, and so does what they link to."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from support.helpers import SOURCE, bundled_images, whole_command
from support.torchvision_files import write_mnist
from torch.utils.data import TensorDataset

DOCUMENTS = sorted(
    [*SOURCE.glob("*.md"), *(SOURCE / "docs").rglob("*.md"), *(SOURCE / "bench").rglob("*.md")],
    key=lambda path: path.relative_to(SOURCE),
)
IDS = [str(path.relative_to(SOURCE)) for path in DOCUMENTS]
GLOBALS = ("--help", "--version")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
README_LINES = 90
STALE = ("shipped before", "shipped then")  # figures are of what is in the package now


def code_blocks(document: Path, language: str) -> list[str]:
    """The code of a document's blocks in one language, in order."""
    return [code for name, code in FENCE.findall(document.read_text()) if name == language]


def prose(document: Path) -> str:
    """A document's text without its blocks of code."""
    return FENCE.sub("", document.read_text())


def commands(document: Path) -> list[str]:
    """The `pxfast ...` commands within a document's text and its shell blocks."""
    blocks = [re.sub(r"\\\n\s*", "", block) for block in code_blocks(document, "sh")]  # a command may go on after \\
    lines = [line for block in blocks for line in re.split(r"\n|&&", block)]
    lines += [inline.replace("\n", " ") for inline in re.findall(r"`([^`]+)`", prose(document))]
    return [line.strip() for line in lines if line.strip().startswith("pxfast ")]


def check_command(line: str) -> None:
    """ValueError for a subcommand or an option that ``pxfast`` does not have."""
    command = whole_command()
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


def anchors(document: Path) -> set[str]:
    """What can follow # in a link to a document: its headings in GitHub's form, which is the site's as well.

    On a page of the reference, so can each name that it documents.
    """
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.add(words.strip().replace(" ", "-"))
    return found | set(re.findall(r"^::: ([\w.]+)$", document.read_text(), flags=re.MULTILINE))


def dead_links(document: Path) -> list[str]:
    """The relative links of a document that lead to no file, or to no heading of it."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document if not path else document.parent / path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_commands_and_their_options_exist(document: Path) -> None:
    for line in commands(document):
        check_command(line)


def test_every_script_of_the_benchmarks_is_listed() -> None:
    scripts = {path.name for path in (SOURCE / "bench").rglob("*") if path.suffix in (".py", ".sh", ".toml")}
    assert scripts <= set(re.findall(r"`([\w.]+)`", (SOURCE / "bench" / "README.md").read_text()))


def test_every_command_is_shown() -> None:
    shown = {line.split()[1] for line in commands(SOURCE / "docs" / "command-line.md")}
    assert set(whole_command().commands) <= shown


def test_a_wrong_command_is_seen() -> None:
    for line in ("pxfast purify IN OUT --epsilon 16", "pxfast purge IN OUT", "pxfast evaluate table3"):
        with pytest.raises(ValueError, match="there is no"):
            check_command(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_the_files_that_are_named_exist(document: Path) -> None:
    folders, endings = "pxfast|csrc|kernels|bench|tests|docs", "py|cpp|cuh?|h|sh|md|json|html|png|toml"
    paths = re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]+\.(?:{endings}))\b", document.read_text())
    missing = {path for path in paths if not (SOURCE / path).exists()}
    assert not missing - {"bench/results/NAME.json"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_links_lead_somewhere(document: Path) -> None:
    assert not dead_links(document)


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, *here*\n\n```\n# no heading\n```\n")
    good = "[a](other.md) [b](other.md#a-heading-here) [c](https://nowhere.example/x.md#y) [d](#top)"
    bad = ["nothing.md", "other.md#no-heading", "#bottom"]
    page = tmp_path / "page.md"
    page.write_text(f"# Top\n\n{good} {' '.join(f'[x]({link})' for link in bad)}\n")
    assert dead_links(page) == bad


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_figures_are_of_what_is_in_the_package(document: Path) -> None:
    text = re.sub(r"\s+", " ", document.read_text().lower())
    assert not [phrase for phrase in STALE if phrase in text]


def test_the_readme_is_short() -> None:
    assert len((SOURCE / "README.md").read_text().splitlines()) <= README_LINES


def test_the_readmes_python_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = code_blocks(SOURCE / "README.md", "python")
    names: dict[str, torch.Tensor] = {}
    exec(re.sub(r"steps=\d+", "steps=2", block), names)
    assert capsys.readouterr().out.startswith("passed (fp32)")
    for after, before, eps in (("attacked", "images", 25), ("purified", "attacked", 32), ("broken", "images", 8)):
        assert names[after].shape == names[before].shape
        assert 0 < (names[after].int() - names[before].int()).abs().max() <= eps


@pytest.mark.whole  # the README's goes the same road in the inner loop
def test_the_python_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "DATA")  # what is there is not downloaded
    names: dict[str, torch.Tensor] = {}
    for block in code_blocks(SOURCE / "docs" / "guide.md", "python"):
        exec(re.sub(r"steps=\d+", "steps=2", block).replace("runs=10", "runs=2, steps=2"), names)
    assert names["digits"].shape == (5, 1, 28, 28)
    assert names["averaged"].shape == names["logits"].shape == (2, 10)
    assert (names["broken"].int() - names["images"].int()).abs().max() <= 8
    assert (tmp_path / "mine.safetensors").is_file()


@pytest.mark.whole
def test_the_python_of_attacks_runs() -> None:
    from pxfast.classifiers import load_classifier

    names: dict[str, object] = {
        "pxfast": __import__("pxfast"),
        "classifier": load_classifier("fashion-mnist"),
        "images": bundled_images(1)[:2],
        "labels": torch.tensor([9, 2]),
    }
    for block in code_blocks(SOURCE / "docs" / "attacks.md", "python"):
        exec(re.sub(r"steps=\d+", "steps=2", block), names)
    assert names["result"].queries.max() <= 50


@pytest.mark.whole
def test_the_python_of_evaluation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.own_classifiers import plain

    from pxfast.classifiers import load_classifier
    from pxfast.defences import FeatureSqueezing

    monkeypatch.chdir(tmp_path)
    images, labels = bundled_images(1)[:2], torch.tensor([0, 0])  # wrong ones: attacks that know it are done at once
    monkeypatch.setattr("pxfast.evaluation.given.load_dataset", lambda *_, **__: (images, labels))
    model = plain(load_classifier("fashion-mnist"))
    names: dict[str, object] = {"pxfast": __import__("pxfast"), "model": model, "images": images, "labels": labels}
    first, second, third = code_blocks(SOURCE / "docs" / "evaluation.md", "python")
    exec(first.replace('images=500, out="mine"', 'defences=["pixeldefend"], attacks=["bpda-eot"], out="mine"'), names)
    assert names["table"].finished
    exec(re.sub(r"steps=\d+", "steps=1", second).replace("(2, 8)", "8"), names)
    assert len(list((tmp_path / "mine" / "tables").glob("*.json"))) == 2
    names |= {"classifier": model, "purifier": FeatureSqueezing().eval()}
    exec(third.replace("images=64", 'images=2, attacks=["bpda:steps=1"]'), names)
    assert names["verdict"].strongest.interval()


def test_the_python_of_data_loaders_runs() -> None:
    blocks = code_blocks(SOURCE / "docs" / "pipelines.md", "python")
    names: dict[str, object] = {"dataset": TensorDataset(bundled_images(1)[:3], torch.arange(3))}
    exec(blocks[0], names)
    ((images, labels),) = names["loader"]
    assert images.shape == (3, 1, 28, 28)
    assert labels.tolist() == [0, 1, 2]
    exec(blocks[1], names)
    assert names["dataset"].transform is not None


def test_the_python_of_attack_libraries_runs() -> None:
    names: dict[str, object] = {}
    exec(code_blocks(SOURCE / "docs" / "attack-libraries.md", "python")[0], names)
    assert names["model"](bundled_images(1)[:2]).shape == (2, 10)  # the libraries themselves: tests of defences
