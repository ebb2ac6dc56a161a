"""A model's fingerprint tells models apart, and knows one again after it has been in a file."""

import copy

import pytest
import torch

import pxfast
from pxfast.pixelcnn.files import save
from pxfast.pixelcnn.fingerprint import model_fingerprint


def test_every_weight_counts(make_model):
    model = make_model(channels=3, head="softmax")
    before = model_fingerprint(model)
    assert before == model_fingerprint(copy.deepcopy(model))
    seen = {before}
    for parameter in model.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        seen.add(model_fingerprint(model))
        with torch.no_grad():
            parameter.copy_(kept)
    assert model_fingerprint(model) == before
    assert len(seen) == 1 + len(list(model.parameters()))


def test_type_and_memory_format_of_the_model_itself_do_not_count():
    """They change no likelihood: the frozen copy that decodes has fp32, and a convolution's weights in one order."""
    model = pxfast.load("fashion-mnist")
    before = model_fingerprint(model)
    assert model_fingerprint(copy.deepcopy(model).to(memory_format=torch.channels_last)) == before
    assert model_fingerprint(copy.deepcopy(model).double()) == before


def test_shape_and_head_count(make_model):
    """The same weights over images of another size, or read by another head, are another model."""
    weights = make_model().state_dict()
    seen = set()
    for size, head in (((8, 8), "logistic"), ((8, 12), "logistic"), ((8, 8), "pixelcnn++")):
        model = make_model(size, head=head)
        model.load_state_dict(weights)
        seen.add(model_fingerprint(model))
    assert len(seen) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_survives_files_and_machines(make_model, tmp_path, monkeypatch, dtype):
    save(make_model(), tmp_path / "first.safetensors", dtype=dtype)
    first = pxfast.load(tmp_path / "first.safetensors")
    fingerprint = model_fingerprint(first)
    if dtype == torch.bfloat16:
        save(first, tmp_path / "second.safetensors", notes={"test_bits_per_dim": 1.0})
        assert fingerprint == model_fingerprint(pxfast.load(tmp_path / "second.safetensors"))
    here = torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda *a, **k: here(*a, **k) * (1 + 2**-22))  # rounds otherwise
    elsewhere = pxfast.load(tmp_path / "first.safetensors")
    assert not torch.equal(elsewhere.output.g, first.output.g)
    assert model_fingerprint(elsewhere) == fingerprint
