"""Checkpoints of a large model: shards of a bounded size, and never less than one whole checkpoint on disk."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.helpers import environment

from pxfast.tensors import safetensors
from pxfast.training import checkpoints
from pxfast.training.checkpoints import SHARD_BYTES, read_checkpoint, write_checkpoint

FORMAT = "a-format"
LIMIT = 30_000


def some_tensors(seed: int, count: int = 9) -> dict[str, torch.Tensor]:
    """91 kB: matrices in several layouts, one larger than a shard, and a number."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"small.{i}": torch.randn(3, 5, 7, 4, generator=generator) for i in range(count)}
    tensors["last"] = torch.randn(8, 16, 2, 3, generator=generator).to(memory_format=torch.channels_last)
    tensors["large"] = torch.randn(50, 350, generator=generator)
    tensors["step"] = torch.tensor(float(seed))
    return tensors


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", LIMIT)
    monkeypatch.setattr(checkpoints, "SINGLE_FILE_BYTES", LIMIT)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_small_checkpoint_is_one_file(tmp_path):
    path = tmp_path / "m.checkpoint.safetensors"
    write_checkpoint(path, some_tensors(0), {"format": FORMAT, "what": "ever"})
    assert files(tmp_path) == {path.name}
    tensors, metadata = read_checkpoint(path, FORMAT)
    assert_same(tensors, some_tensors(0))
    assert metadata["what"] == "ever"


def test_no_file_of_a_large_checkpoint_is_larger_than_a_shard_may_be(tmp_path):
    path = tmp_path / "m.checkpoint.safetensors"
    tensors = {f"w.{i}": torch.full((320, 320, 2, 3), float(i)) for i in range(14)}  # 34 MB
    tensors["huge"] = torch.arange(5_000_000, dtype=torch.float32).reshape(1000, 5000)
    tensors |= {f"b.{i}": torch.full((3,), float(i)) for i in range(500)}
    write_checkpoint(path, tensors, {"format": FORMAT})
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert max(sizes) <= SHARD_BYTES == 15_000_000
    assert len(sizes) == 6, "an index and five shards: they are filled"
    assert_same(read_checkpoint(path, FORMAT)[0], tensors)


def test_shards_are_read_back_and_old_ones_removed(tmp_path, small_shards):
    path, other = tmp_path / "m.checkpoint.safetensors", tmp_path / "m.checkpoint.a-notes.safetensors"
    other.write_bytes(b"not ours")
    listings = []
    for seed in range(3):
        write_checkpoint(path, some_tensors(seed, count=9 - seed), {"format": FORMAT, "seed": str(seed)})
        tensors, metadata = read_checkpoint(path, FORMAT)
        assert_same(tensors, some_tensors(seed, count=9 - seed))
        assert metadata["seed"] == str(seed)
        listings.append(files(tmp_path))
        assert all(file.stat().st_size <= LIMIT for file in tmp_path.iterdir())
    shared = {path.name, other.name}
    assert listings[0] & listings[1] == listings[1] & listings[2] == shared
    assert "m.checkpoint.a-00001-of-00004.safetensors" in listings[0]
    assert "m.checkpoint.b-00001-of-00004.safetensors" in listings[1]
    assert_same(read_checkpoint(path, FORMAT)[0], some_tensors(2, count=7))
    monkey = some_tensors(3, count=1)
    del monkey["large"]
    write_checkpoint(path, monkey, {"format": FORMAT})  # small again
    assert files(tmp_path) == shared
    assert_same(read_checkpoint(path, FORMAT)[0], monkey)


# Writes a checkpoint, then another one, in which it kills itself before the file of that number gets its name.
KILLED = """
import os, signal, sys
from pathlib import Path
from training.test_checkpoints import FORMAT, LIMIT, some_tensors
from pxfast.training import checkpoints
path, number = Path(sys.argv[1]), int(sys.argv[2])
checkpoints.SHARD_BYTES = checkpoints.SINGLE_FILE_BYTES = LIMIT
checkpoints.write_checkpoint(path, some_tensors(0), {"format": FORMAT})
replace, left = os.replace, [number]
def dying(*arguments):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    replace(*arguments)
os.replace = dying
checkpoints.write_checkpoint(path, some_tensors(1), {"format": FORMAT})
"""


@pytest.mark.process
def test_kill_between_shards_leaves_the_checkpoint_before(tmp_path, small_shards):
    path = tmp_path / "m.checkpoint.safetensors"
    command = [sys.executable, "-c", KILLED, str(path), "3"]
    assert subprocess.run(command, env=environment(), timeout=200).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("m.checkpoint.b-*"))) == 3, "the new checkpoint was under way"
    assert_same(read_checkpoint(path, FORMAT)[0], some_tensors(0))
    write_checkpoint(path, some_tensors(2), {"format": FORMAT})
    assert_same(read_checkpoint(path, FORMAT)[0], some_tensors(2))
    assert not list(tmp_path.glob("m.checkpoint.a-*"))


@pytest.mark.parametrize("written", range(5))  # four shards and the index
def test_a_failure_before_any_file_leaves_the_checkpoint_before(tmp_path, small_shards, monkeypatch, written):
    path = tmp_path / "m.checkpoint.safetensors"
    write_checkpoint(path, some_tensors(0), {"format": FORMAT})
    save, calls = checkpoints._save, []

    def failing(*arguments):
        if len(calls) == written:
            raise OSError("no space left on device")
        calls.append(arguments)
        save(*arguments)

    monkeypatch.setattr(checkpoints, "_save", failing)
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(path, some_tensors(1), {"format": FORMAT})
    assert len(calls) == written
    assert_same(read_checkpoint(path, FORMAT)[0], some_tensors(0))
    assert not list(tmp_path.glob("m.checkpoint.b-*")), "they would take what space is left"


@pytest.mark.parametrize("replacements", [1, 2])
@pytest.mark.parametrize("shards", [True, False])
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch, shards, replacements):
    """Its shards are gone by then, or are of their letter's next checkpoint; of one file the tensors are others."""
    if shards:
        monkeypatch.setattr(checkpoints, "SHARD_BYTES", LIMIT)
        monkeypatch.setattr(checkpoints, "SINGLE_FILE_BYTES", LIMIT)
    path, left = tmp_path / "m.checkpoint.safetensors", list(range(1, replacements + 1))

    def write(seed: int) -> None:
        write_checkpoint(path, some_tensors(seed), {"format": FORMAT, "seed": str(seed)})

    read = safetensors.read_tensors

    def replaced(header):
        while left:
            write(left.pop(0))
        return read(header)

    write(0)
    monkeypatch.setattr(safetensors, "read_tensors", replaced)
    tensors, metadata = read_checkpoint(path, FORMAT)
    assert metadata["seed"] == str(replacements)
    assert_same(tensors, some_tensors(replacements))


def test_foreign_or_missing_shards_are_told(tmp_path, small_shards):
    path = tmp_path / "m.checkpoint.safetensors"
    write_checkpoint(path, some_tensors(0), {"format": FORMAT})
    shard = tmp_path / "m.checkpoint.a-00002-of-00004.safetensors"
    other = tmp_path / "o.checkpoint.safetensors"
    write_checkpoint(other, some_tensors(0), {"format": FORMAT})
    shard.write_bytes((tmp_path / shard.name.replace("m.", "o.")).read_bytes())
    with pytest.raises(ValueError, match=r"a-00002-of-00004\.safetensors is a shard of another checkpoint"):
        read_checkpoint(path, FORMAT)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="a-00002-of-00004"):
        read_checkpoint(path, FORMAT)
    with pytest.raises(ValueError, match="another kind"):
        read_checkpoint(other, "another-format")
