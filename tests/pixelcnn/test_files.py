"""Model files: exact round trips; anything truncated, foreign or unfitting is refused by name; nothing is unpickled."""

import dataclasses
import json
import os
import pickle
import resource
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import pxfast
from pxfast.pixelcnn.files import read_metadata, save
from pxfast.pixelcnn.heads import HEADS
from pxfast.pixelcnn.network import FORMAT


def save_tensors(path, tensors, model, **changes):
    config = {**dataclasses.asdict(model.config), **changes}
    save_file(tensors, path, metadata={"format": FORMAT, "config": json.dumps(config), "notes": "{}"})
    return path


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_round_trip(make_model, tmp_path, head, dtype):
    model = make_model(channels=3, head=head)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save(model, first, dtype=dtype, notes={"test_bits_per_dim": 3.5})
    loaded = pxfast.load(first)
    assert loaded.config == model.config
    assert not loaded.training
    expected = model.stored_tensors(dtype)
    stored = load_file(first)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    # a loaded model has exactly the file's weights, up to one rounding of v / |v| * |v|, which bf16 swallows
    for name, convolution in loaded.convolutions():
        torch.testing.assert_close(convolution.weight(), stored[f"{name}.weight"].float(), rtol=1e-6, atol=0)
        assert torch.equal(convolution.b, stored[f"{name}.bias"])
    save(loaded, second, dtype=dtype)
    if dtype == torch.bfloat16:
        again = load_file(second)
        assert all(torch.equal(stored[name], again[name]) for name in stored)
    config, notes = read_metadata(first)
    assert config == model.config
    assert notes == {"test_bits_per_dim": 3.5}


def test_loaded_fp32_model_gives_the_same_bits(tiny_model, tmp_path):
    save(tiny_model, tmp_path / "m.safetensors", dtype=torch.float32)
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        pxfast.bits_per_dim(images, model=tmp_path / "m.safetensors"),
        pxfast.bits_per_dim(images, model=tiny_model),
        rtol=1e-5,
        atol=0,
    )


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_files_are_refused(tiny_model, tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save(tiny_model, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not a safetensors file"):
        pxfast.load(path)


class Bomb:
    """Unpickling this makes a folder, which a test would see."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_pickles_are_refused_unopened(tmp_path, name):
    path, trace = tmp_path / name, tmp_path / "unpickled"
    path.write_bytes(pickle.dumps(Bomb(str(trace))))
    with pytest.raises(ValueError, match="not a safetensors file"):
        pxfast.load(path)
    assert not trace.exists()
    torch.save({"a": Bomb(str(trace))}, path)
    with pytest.raises(ValueError, match="not a safetensors file"):
        pxfast.load(path)
    assert not trace.exists()


def test_foreign_safetensors_are_refused(tiny_model, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"other\.safetensors .*expected 'pxfast-pixelcnn', found 'no format'"):
        pxfast.load(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="found 'pt'"):
        pxfast.load(path)


def test_unfitting_tensors_are_refused_by_name(tiny_model, tmp_path):
    path = tmp_path / "model.safetensors"
    good = tiny_model.stored_tensors(torch.bfloat16)
    pxfast.load(save_tensors(path, good, tiny_model))

    name = "up.0.0.vertical.conv_in.weight"
    with pytest.raises(ValueError, match=rf"model\.safetensors: {name} should have shape .* found \(3,\)"):
        pxfast.load(save_tensors(path, {**good, name: torch.zeros(3)}, tiny_model))
    with pytest.raises(ValueError, match=rf"missing or unexpected tensors.*{name}"):
        pxfast.load(save_tensors(path, {k: v for k, v in good.items() if k != name}, tiny_model))
    with pytest.raises(ValueError, match=r"missing or unexpected tensors.*extra"):
        pxfast.load(save_tensors(path, {**good, "extra": torch.zeros(1)}, tiny_model))
    with pytest.raises(ValueError, match=rf"{name} has values that are not finite"):
        pxfast.load(save_tensors(path, {**good, name: good[name] * float("nan")}, tiny_model))
    with pytest.raises(ValueError, match="should have shape"):
        pxfast.load(save_tensors(path, good, tiny_model, filters=16))


@pytest.mark.parametrize("changes", [{"head": "gauss"}, {"image_size": [9, 8]}, {"colour": 1}, {"filters": "8"}])
def test_bad_configurations_are_refused(tiny_model, tmp_path, changes):
    path = save_tensors(tmp_path / "m.safetensors", tiny_model.stored_tensors(torch.bfloat16), tiny_model, **changes)
    with pytest.raises(ValueError, match=r"m\.safetensors: bad model configuration"):
        pxfast.load(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resnets": 10**6}, "resnets must be an integer in 1..100, got 1000000"),
        ({"filters": 10**9}, "filters must be an integer in 1..4096"),
        ({"mixtures": 10**9}, "mixtures must be an integer in 1..1000"),
        ({"image_size": [1 << 30, 1 << 30]}, "image_size must be"),
        ({"image_size": 8}, "image_size must be a list of 2, got 8"),
        ({"filters": True}, "filters must be an integer, got True"),
        ({"filters": 10**400}, "filters must be an integer"),
        ({"channels": 1.0}, "channels must be an integer"),
        ({"dropout": float("nan")}, "dropout must be a number in"),
        ({"dropout": None}, "dropout must be a number, got None"),
        ({"head": ["logistic"]}, "head must be a text"),
        ({"head": "x" * 10**5}, "head must be one of"),
        # what may be asked for, but is not in the file: refused before anything is built
        ({"resnets": 100, "filters": 4096}, "missing tensors, it has"),
        ({"filters": 4096}, "should have shape"),
    ],
)
def test_nothing_is_built_for_what_a_configuration_asks(tiny_model, tmp_path, changes, words):
    tensors = tiny_model.stored_tensors(torch.bfloat16)
    path = save_tensors(tmp_path / "m.safetensors", tensors, tiny_model, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(ValueError, match=rf"m\.safetensors.*{words}") as error:
        pxfast.load(path)
    assert time.perf_counter() - started < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_weights_are_floating_point(tiny_model, tmp_path, dtype):
    name = "up.0.0.vertical.conv_in.weight"
    tensors = tiny_model.stored_tensors(torch.float32)
    path = save_tensors(tmp_path / "m.safetensors", {**tensors, name: tensors[name].to(dtype)}, tiny_model)
    with pytest.raises(ValueError, match=rf"m\.safetensors: {name} should be one of float64, .* found"):
        pxfast.load(path)


def test_names_and_paths(tmp_path):
    with pytest.raises(ValueError, match=r"unknown model 'imagenet'; shipped: cifar10, fashion-mnist"):
        pxfast.load("imagenet")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*missing\.safetensors"):
        pxfast.load(tmp_path / "missing.safetensors")
    with pytest.raises(TypeError, match="expected the name or the path of a model, got int"):
        pxfast.load(3)
