"""PixelCNNs as folders and on the Hugging Face Hub, whose network is never touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.engines import QUICK
from support.helpers import SOURCE, real_images

import pxfast
from pxfast import PixelCNN
from pxfast.tensors.pretrained import CARD, CONFIG, WEIGHTS

NOTES = {"dataset": "letters", "license": "MIT", "test_bits_per_dim": 2.5, "test_images": 1234}


@pytest.fixture
def folder(tiny_model: PixelCNN, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "a" / "model", notes=NOTES)
    return tmp_path / "a" / "model"


def same(model: PixelCNN, other: PixelCNN) -> bool:
    ours, theirs = model.stored_tensors(torch.bfloat16), other.stored_tensors(torch.bfloat16)
    return model.config == other.config and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_folder_holds_what_every_reader_takes(tiny_model: PixelCNN, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [CARD, CONFIG, WEIGHTS]
    model = PixelCNN.from_pretrained(folder)
    assert same(model, tiny_model)
    assert not model.training
    assert model.notes == NOTES
    assert same(pxfast.load(folder), tiny_model)
    assert same(pxfast.load(folder / WEIGHTS), tiny_model)
    images = real_images(1, (8, 8), 2)
    settings = {"eps": 16, "engine": QUICK, "precision": "fp32"}
    expected = pxfast.purify(images, model=model, **settings)
    assert torch.equal(pxfast.purify(images, model=str(folder), **settings), expected)
    again = folder.parent / "again"
    model.save_pretrained(again)  # with the notes that it came with
    assert same(pxfast.load(again), tiny_model)
    for name in (CONFIG, CARD):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_card_that_is_there_is_kept(tiny_model: PixelCNN, folder: Path) -> None:
    (folder / CARD).write_text("mine")
    tiny_model.save_pretrained(folder, notes={})
    assert (folder / CARD).read_text() == "mine"
    assert PixelCNN.from_pretrained(folder).notes == {}


def test_damaged_and_foreign_folders_are_refused(tiny_model: PixelCNN, folder: Path, make_model) -> None:
    whole = {name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG)}

    def refused(message: str, kind: type[Exception] = ValueError, **files: bytes | None) -> None:
        for name, data in {
            **whole,
            **{{"weights": WEIGHTS, "config": CONFIG}[key]: files[key] for key in files},
        }.items():
            (folder / name).unlink(missing_ok=True)
            if data is not None:
                (folder / name).write_bytes(data)
        with pytest.raises(kind, match=message):
            PixelCNN.from_pretrained(folder)

    refused(r"model.safetensors", FileNotFoundError, weights=None)
    refused(r"config.json", FileNotFoundError, config=None)
    refused(r"model.safetensors is truncated", weights=whole[WEIGHTS][:-7])
    refused(r"model.safetensors is truncated", weights=b"\x80\x04\x95 a pickle, which nobody opens")
    refused(r"config.json is not JSON", config=b"{")
    refused(r"config.json is not the configuration in .*model.safetensors", config=b"[]")
    said = json.loads(whole[CONFIG])
    said["config"]["filters"] += 1
    refused(r"config.json is not the configuration in", config=json.dumps(said).encode())
    save_file({"x": torch.zeros(1)}, folder / WEIGHTS, metadata={"format": "pt"})
    foreign = (folder / WEIGHTS).read_bytes()
    refused(r"model.safetensors is a safetensors file of another kind", weights=foreign)


def test_wrong_arguments_are_refused_before_anything_is_written(tiny_model: PixelCNN, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="folder must be a path, got 3"):
        tiny_model.save_pretrained(3)
    with pytest.raises(TypeError, match="notes must be a dictionary"):
        tiny_model.save_pretrained(tmp_path / "m", notes={"x": object()})
    with pytest.raises(TypeError, match="notes must be a dictionary"):
        tiny_model.save_pretrained(tmp_path / "m", notes=[1])
    with pytest.raises(TypeError, match="private: only for push_to_hub=True"):
        tiny_model.save_pretrained(tmp_path / "m", private=True)
    with pytest.raises(TypeError, match="push_to_hub must be True or False"):
        tiny_model.save_pretrained(tmp_path / "m", push_to_hub="yes")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file, expected a folder"):
        tiny_model.save_pretrained(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for name in ("nothing", "a/b/c", "../x", "/nowhere/at-all", ""):
        with pytest.raises(ValueError, match="name_or_folder must be a folder that exists, or 'organisation/name'"):
            PixelCNN.from_pretrained(name)
    with pytest.raises(TypeError, match="force_download must be True or False"):
        PixelCNN.from_pretrained(tmp_path, force_download=1)
    with pytest.raises(FileNotFoundError, match=r"downloaded by PixelCNN.from_pretrained\('org/name'\)"):
        pxfast.purify(real_images(1, (8, 8), 1), model="org/name")
    with pytest.raises(ValueError, match="expected a file, found a folder"):
        pxfast.load(tmp_path)


def test_a_name_of_the_hub_is_downloaded_and_passes_the_same_door(
    tiny_model: PixelCNN, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    asked = []

    def download(repo_id: str, filename: str, **options: object) -> str:
        asked.append((repo_id, filename, options))
        return str(folder / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    model = PixelCNN.from_pretrained("org/name", revision="v1", local_files_only=True)
    assert same(model, tiny_model)
    assert [(repo, name) for repo, name, _ in asked] == [("org/name", WEIGHTS), ("org/name", CONFIG)]
    options = {"revision": "v1", "local_files_only": True, "force_download": False, "token": None, "cache_dir": None}
    assert all(given == options for _, _, given in asked)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated"):
        PixelCNN.from_pretrained("org/name")


def test_push_to_hub_uploads_the_folder_in_one_commit(
    tiny_model: PixelCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixin = pytest.importorskip("huggingface_hub.hub_mixin", reason="the extra hub is not installed")
    calls: list[tuple[str, dict]] = []
    files: dict[str, bytes] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", {"token": token}))

        def create_repo(self, **options: object) -> object:
            calls.append(("create", options))
            return type("Created", (), {"repo_id": options["repo_id"]})()

        def upload_folder(self, *, folder_path: Path, **options: object) -> str:
            calls.append(("upload", options))
            files.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return "the commit's address"

    monkeypatch.setattr(mixin, "HfApi", Api)
    address = tiny_model.push_to_hub("org/name", notes=NOTES, private=True, token="secret", branch="b")
    assert address == "the commit's address"
    assert [name for name, _ in calls] == ["token", "create", "upload"]
    assert calls[0][1] == {"token": "secret"}
    assert calls[1][1] == {"repo_id": "org/name", "private": True, "exist_ok": True}
    assert calls[2][1]["repo_id"] == "org/name"
    assert calls[2][1]["revision"] == "b"
    assert sorted(files) == [CARD, CONFIG, WEIGHTS]
    assert 'from_pretrained("org/name")' in files[CARD].decode()
    (tmp_path / WEIGHTS).write_bytes(files[WEIGHTS])
    assert same(pxfast.load(tmp_path), tiny_model)
    assert tiny_model.save_pretrained(tmp_path / "m", push_to_hub=True, private=False) == "the commit's address"
    assert calls[-1][1]["repo_id"] == "m"
    with pytest.raises(TypeError, match="unheard_of"):
        tiny_model.push_to_hub("org/name", unheard_of=1)


def test_without_the_extra_the_methods_say_which_one(
    tiny_model: PixelCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pxfast.tensors import pretrained

    pretrained._hub_form.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (
        lambda: tiny_model.push_to_hub("org/name"),
        lambda: tiny_model.save_pretrained(tmp_path / "m", push_to_hub=True),
        lambda: PixelCNN.from_pretrained("org/name"),
    ):
        with pytest.raises(ImportError, match=r"huggingface_hub is not installed: pip install 'pxfast\[hub\]'"):
            call()
    assert not (tmp_path / "m").exists()
    tiny_model.save_pretrained(tmp_path / "m")  # a folder needs no extra
    assert same(PixelCNN.from_pretrained(tmp_path / "m"), tiny_model)


@pytest.mark.process
def test_nothing_else_imports_huggingface_hub(folder: Path) -> None:
    program = (
        "import sys, torch, pxfast; m = pxfast.load(sys.argv[1]); "
        "pxfast.purify(torch.zeros(1, 1, 8, 8), model=m, engine='reference'); pxfast.list_models(); "
        "sys.exit('huggingface_hub' in sys.modules or 'torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, cwd=SOURCE)


def test_a_card_says_what_the_notes_do(tiny_model: PixelCNN, folder: Path) -> None:
    card = (folder / CARD).read_text()
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert 'license: "mit"\ndatasets:\n- "letters"' in head
    for fact in ("| bits/dim | 2.5000, mean of 1,234 test images |", "The weights: MIT.", "(C, H, W) = (1, 8, 8)"):
        assert fact in text
    assert "The file has no notes of its training." in text
    bare = tiny_model.model_card({})
    assert "license:" not in bare
    assert "| bits/dim | not measured |" in bare
    assert "licence is not noted" in bare
    odd = tiny_model.model_card({"dataset": "a|b\nc", "test_bits_per_dim": "x", "parts": [3, {"steps": 1}], "steps": 1})
    assert "| data set | a/b c |" in odd
    shipped = pxfast.load("cifar10")
    text = shipped.model_card(shipped.notes)
    assert "| data set | cifar10 |" in text
    assert "8 runs, 83,687 steps in 9.0 hours" in text
    assert "| 8 | 80 | 2132 | 545792 | 205 | 256 | muon | linear | 0 |" in text
    assert "The weights: Apache-2.0." in text
    assert "not secure against" in text


def test_list_models_says_what_they_are() -> None:
    for info in pxfast.list_models():
        assert info.dataset == info.name
        assert info.licence == "Apache-2.0"
        assert info.path.stat().st_size == info.bytes
        assert info.training is not None
        assert info.notes["test_images"] == 10000
        assert str(info).startswith(f"{info.name}: ")
        assert f"{info.bits_per_dim:.4f} bits/dim" in str(info)
        assert "notes" not in repr(info)
        assert pxfast.load(info.name).notes == info.notes
