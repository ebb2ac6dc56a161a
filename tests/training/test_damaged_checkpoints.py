"""A checkpoint that is not what a run wrote is refused by name, and the weights of the run stay as they were."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.helpers import real_images
from support.small_training import CONFIG, SETTINGS
from torch import Tensor

from pxfast.pixelcnn.training import Trainer, read_settings
from pxfast.training import checkpoints
from pxfast.training.checkpoints import read_checkpoint, write_checkpoint

NESTED = "[" * 100_000
Change = Callable[[dict[str, str]], dict[str, str]]


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    with torch.random.fork_rng(devices=[]):
        run = Trainer(CONFIG, dataclasses.replace(SETTINGS, batch_size=8), real_images(1, (8, 8), 16))
        run.initialise()
        run.train_step()
    run.history.append({"step": 1, "train_bits_per_dim": 8.0})
    return run


@pytest.fixture(scope="module")
def good(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = tmp_path_factory.mktemp("good") / "m.checkpoint.safetensors"
    trainer.save(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def field(key: str, **values: Any) -> Change:
    """Metadata with other values in the table that lies under a key; None removes one."""

    def change(metadata: dict[str, str]) -> dict[str, str]:
        table = {**json.loads(metadata[key]), **values}
        return {**metadata, key: json.dumps({name: value for name, value in table.items() if value is not None})}

    return change


def text(key: str, value: str | None) -> Change:
    """Metadata with another text under a key; None removes it."""
    return lambda metadata: {name: t for name, t in {**metadata, key: value}.items() if t is not None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((text(key, None), f"lacks '{key}'") for key in ("config", "settings", "position", "history")),
        *((text(key, "{"), f"'{key}' in its metadata is not JSON") for key in ("config", "settings", "position")),
        *((text(key, NESTED), f"'{key}' in its metadata is not JSON") for key in ("config", "history", "images")),
        (text("settings", "[]"), "'settings' in its metadata must be a table"),
        (text("position", "3"), "expected a table of fields, got 3"),
        (text("history", "{}"), "the history of a run must be a list of tables"),
        (text("history", "[3]"), "the history of a run must be a list of tables"),
        (text("history", '[{"train_bits_per_dim": "x"}]'), "the history of a run must be a list of tables of numbers"),
        (text("images", '"a"'), "other training images"),
        (text("shards", '["../m.safetensors"]'), "must be the names of its own shards"),
        (text("shards", '["/etc/passwd"]'), "must be the names of its own shards"),
        (text("shards", "3"), "must be the names of its own shards"),
        (text("shards", '[["a"]]'), "must be the names of its own shards"),
        (text("format", "pxfast-pixelcnn"), "of another kind"),
        (field("position", step="3"), "step must be an integer, got '3'"),
        (field("position", step=1.5), "step must be an integer"),
        (field("position", step=-1), "step must be an integer in 0"),
        (field("position", step=10**30), "step must be an integer in 0"),
        (field("position", seconds="x"), "seconds must be a number, got 'x'"),
        (field("position", seconds=float("nan")), "seconds must be a number"),
        (field("position", step=None), "lacks step"),
        (field("position", place=3), "unknown place"),
        (field("config", filters="6"), "another config"),
        (field("settings", seed="a"), "another settings .*seed: a then, 0 now"),
        (field("settings", batch_size=[1] * 10**4), r"batch_size: \[1, 1, [1, ]* then, 8 now"),
    ],
)
def test_metadata_are_checked(trainer, good, tmp_path, change, words):
    tensors, metadata = good
    path = tmp_path / "m.checkpoint.safetensors"
    save_file(tensors, path, metadata=change(metadata))
    before = trainer.model.output.v.detach().clone()
    with pytest.raises(ValueError, match=rf"m\.checkpoint\.safetensors.*{words}"):
        trainer.restore(path)
    assert torch.equal(trainer.model.output.v, before)
    assert trainer.history[-1]["train_bits_per_dim"] == 8.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (text("config", None), "lacks 'config'"),
        (text("settings", NESTED), "is not JSON"),
        (text("settings", "3"), "bad training settings: expected a table of fields, got 3"),
        (field("settings", seed="a"), "bad training settings: seed must be an integer, got 'a'"),
        (field("settings", batch_size=1.5), "batch_size must be an integer, got 1.5"),
        (field("settings", batch_size=0), "batch_size must be"),
        (field("settings", precision=3), "precision must be a text"),
        (field("settings", compile="yes"), "compile must be true or false"),
        (field("settings", speed=3), "unknown speed"),
        (field("config", resnets=10**6), "resnets must be an integer in 1..100"),
        (field("config", image_size="88"), "image_size must be a list of 2"),
    ],
)
def test_settings_are_checked(good, tmp_path, change, words):
    tensors, metadata = good
    path = tmp_path / "m.checkpoint.safetensors"
    save_file(tensors, path, metadata=change(metadata))
    with pytest.raises(ValueError, match=rf"m\.checkpoint\.safetensors.*{words}"):
        read_settings(path)


NAME = "model.output.v"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: {n: t for n, t in tensors.items() if n != NAME}, f"missing or unexpected .*'{NAME}'"),
        (lambda tensors: {**tensors, "x": torch.zeros(1)}, "missing or unexpected .*'x'"),
        (lambda tensors: {**tensors, "optimiser.999.step": torch.zeros(())}, r"'optimiser\.999\.step'"),
        (lambda tensors: {**tensors, "optimiser.a.step": torch.zeros(())}, r"'optimiser\.a\.step'"),
        (lambda tensors: {**tensors, "optimiser.0.x": torch.zeros(())}, r"'optimiser\.0\.x'"),
        (lambda tensors: {n: t for n, t in tensors.items() if n != "optimiser.0.exp_avg"}, r"'optimiser\.0\.exp_avg'"),
        (lambda tensors: {**tensors, NAME: tensors[NAME][:1].clone()}, f"{NAME} should be torch.float32 "),
        (lambda tensors: {**tensors, NAME: tensors[NAME].long()}, f"{NAME} should be .* found torch.int64"),
        (lambda tensors: {**tensors, NAME: tensors[NAME].cfloat()}, f"{NAME} should be .* found torch.complex64"),
        (lambda tensors: {**tensors, "optimiser.0.step": torch.zeros(3)}, r"optimiser\.0\.step should be"),
        (lambda tensors: {**tensors, "optimiser.0.exp_avg": torch.zeros(3)}, r"optimiser\.0\.exp_avg should be"),
    ],
)
def test_tensors_are_checked(trainer, good, tmp_path, change, words):
    tensors, metadata = good
    path = tmp_path / "m.checkpoint.safetensors"
    save_file(change(tensors), path, metadata=metadata)
    with pytest.raises(ValueError, match=rf"m\.checkpoint\.safetensors: .*{words}"):
        trainer.restore(path)


def test_a_whole_one_is_taken(trainer, good, tmp_path):
    tensors, metadata = good
    save_file(tensors, tmp_path / "m.checkpoint.safetensors", metadata=metadata)
    trainer.restore(tmp_path / "m.checkpoint.safetensors")
    assert read_settings(tmp_path / "m.checkpoint.safetensors") == (CONFIG, trainer.settings)


def test_shards_that_do_not_fit_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(checkpoints, "SINGLE_FILE_BYTES", 30_000)
    path = tmp_path / "m.checkpoint.safetensors"
    write_checkpoint(path, {"large": torch.randn(50, 350)}, {"format": "a-format"})
    shard = Path(min(tmp_path.glob("m.checkpoint.a-*")))
    with safe_open(shard, framework="pt") as file:
        metadata = file.metadata()
    save_file({"large:0": torch.zeros(3)}, shard, metadata=metadata)
    with pytest.raises(ValueError, match=r"m\.checkpoint\.safetensors: the pieces of 'large' do not fit together"):
        read_checkpoint(path, "a-format")
    save_file({"large:0": torch.zeros(3)}, shard, metadata={"format": "a-format-shard"})
    with pytest.raises(ValueError, match=r"is a shard of another checkpoint than .*m\.checkpoint\.safetensors"):
        read_checkpoint(path, "a-format")
