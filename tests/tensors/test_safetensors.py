"""What a safetensors file says of itself is believed only where it can be true."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.helpers import run_python

from pxfast import purify
from pxfast.adp.files import SHIPPED as SCORES
from pxfast.adp.files import load_score_network
from pxfast.classifiers.weights import SHIPPED as CLASSIFIERS
from pxfast.classifiers.weights import load_classifier
from pxfast.pixelcnn.files import load_model
from pxfast.pixelcnn.shipped import SHIPPED as MODELS
from pxfast.tensors.safetensors import metadata_json, read_header, read_notes, read_safetensors

FORMAT = "a-format"
GOOD = {"__metadata__": {"format": FORMAT}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def write(path: Path, header: dict[str, Any] | str | bytes, data: bytes = b"\0" * 8, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def with_a(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "a": {**GOOD["a"], **changes}}


def test_a_good_header(tmp_path):
    path = write(tmp_path / "a.safetensors", GOOD)
    header = read_header(path, FORMAT)
    assert header.metadata == {"format": FORMAT}
    assert {name: (each.dtype, each.shape) for name, each in header.tensors.items()} == {"a": ("float32", (2,))}
    tensors, metadata = read_safetensors(path, "another", FORMAT)
    assert torch.equal(tensors["a"], torch.zeros(2))
    assert metadata == header.metadata


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (json.dumps(GOOD)[:-1] + f', "a": {json.dumps(GOOD["a"])}' + "}", "'a' is there twice"),
        (json.dumps(GOOD).replace('"shape": [2]', '"shape": [2], "shape": [2]'), "'shape' is there twice"),
        ("[" * 100_000, "not JSON"),
        ('{"a": ' + "[" * 150 + "]" * 150 + "}", "levels deep"),
        ("[]", "its header is"),
        (b'{"\xff": 1}', "truncated or not"),
        ({**GOOD, "__metadata__": []}, "its metadata are not texts"),
        ({**GOOD, "__metadata__": {"format": 3}}, "its metadata are not texts"),
        ({"a": GOOD["a"]}, "found 'no format'"),
        ({**GOOD, "__metadata__": {"format": "x" * 10**6}}, "found 'xxx"),
        ({**GOOD, "a": 3}, "no type and shape of 'a'"),
        (with_a(dtype=3), "no type and shape of 'a'"),
        (with_a(dtype="F7"), "truncated or not"),
        (with_a(shape=2), "no type and shape of 'a'"),
        (with_a(shape=[-2]), "an impossible shape"),
        (with_a(shape=[2.0]), "an impossible shape"),
        (with_a(shape=[True, 2]), "an impossible shape"),
        (with_a(shape=[1 << 62, 1 << 62]), "an impossible shape"),
        (with_a(shape=[0, 1 << 62]), "an impossible shape"),
        (with_a(shape=[3]), "truncated or not"),
        (with_a(data_offsets=[0, 4]), "truncated or not"),
        (with_a(data_offsets=[8, 16]), "truncated or not"),
        ({**GOOD, "b": GOOD["a"]}, "truncated or not"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, words):
    with pytest.raises(ValueError, match=rf"a\.safetensors is .*{words}") as error:
        read_safetensors(write(tmp_path / "a.safetensors", header), FORMAT)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("length", [0, 1, 10**6, 1 << 40, (1 << 64) - 1])
def test_a_length_that_lies_is_refused(tmp_path, length):
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated or not a safetensors file"):
        read_header(write(tmp_path / "a.safetensors", GOOD, length=length), FORMAT)


def test_a_header_of_many_megabytes_is_not_read(tmp_path):
    path = write(tmp_path / "a.safetensors", " " * (9 << 20))
    with pytest.raises(ValueError, match="that is too large"):
        read_header(path, FORMAT)


def test_only_regular_files_are_read(tmp_path):
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"pipe\.safetensors: expected a file, found a pipe"):
        read_header(pipe, FORMAT)
    with pytest.raises(ValueError, match=r"expected a file, found a device"):
        read_header("/dev/zero", FORMAT)
    with pytest.raises(ValueError, match=r"expected a file, found a folder"):
        read_header(tmp_path, FORMAT)
    for missing in (tmp_path / "missing.safetensors", pipe / "below"):
        with pytest.raises(FileNotFoundError, match="no such file: "):
            read_header(missing, FORMAT)


def test_metadata_are_json_that_is_there(tmp_path):
    path = tmp_path / "a.safetensors"
    for text, words in (("{", "is not JSON"), ("[" * 10**5, "is not JSON"), ('{"a": 1, "a": 2}', "'a' is there twice")):
        with pytest.raises(ValueError, match=rf"a\.safetensors: 'notes' in its metadata {words}|{words}"):
            metadata_json({"notes": text}, "notes", path)
    with pytest.raises(ValueError, match=r"a\.safetensors lacks 'notes' in its metadata"):
        metadata_json({}, "notes", path)
    assert read_notes({}, path) == {}
    with pytest.raises(ValueError, match=r"a\.safetensors: 'notes' in its metadata must be a table, got \[1\]"):
        read_notes({"notes": "[1]"}, path)


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {"a": torch.rand(3, 4).bfloat16(), "b": torch.arange(5), "c": torch.zeros(0, 7), "d": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": FORMAT, "ü": '"\n\\'})
    found, metadata = read_safetensors(tmp_path / "a.safetensors", FORMAT)
    assert metadata["ü"] == '"\n\\'
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.process
def test_loading_networks_imports_no_compiler():
    """It takes torch a second, and every command of ours loads a network."""
    code = """
import sys, torch
if "torch._dynamo" in sys.modules:
    raise SystemExit("torch imports it by itself")
import pxfast
from pxfast.adp.files import SHIPPED
from pxfast.classifiers import load_classifier
for name in ("cifar10", "fashion-mnist"):
    pxfast.load(name), load_classifier(name), SHIPPED.resolve(name)
print("torch._dynamo" in sys.modules)
"""
    assert run_python(code).strip() == "False"


@pytest.mark.parametrize(
    ("shipped", "load"), [(MODELS, load_model), (CLASSIFIERS, load_classifier), (SCORES, load_score_network)]
)
def test_loading_a_network_draws_no_random_numbers(shipped, load):
    """Or a seeded program would depend on whether a shipped network was loaded before."""
    path = shipped.path("fashion-mnist")
    stored = load_file(path)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    state = load(path).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(value.isfinite().all() for value in state.values()), "all values are the file's"
    assert all(torch.equal(value, stored[name].to(value.dtype)) for name, value in state.items() if name in stored)


def test_the_first_purification_draws_no_random_numbers():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    purify(torch.zeros(1, 1, 28, 28), eps=1, model=load_model(MODELS.path("fashion-mnist")))
    assert torch.equal(torch.get_rng_state(), before)
