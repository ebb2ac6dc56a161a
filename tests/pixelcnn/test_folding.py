"""All convolutions' weights at once: the bits of one at a time, in fewer operations."""

import contextlib
import dataclasses

import pytest
import torch
from support.helpers import random_model, real_images
from support.small_training import CONFIG, SETTINGS
from torch.utils._python_dispatch import TorchDispatchMode

from pxfast.pixelcnn.training import Trainer
from pxfast.pixelcnn.training.folding import folded


class Calls(TorchDispatchMode):
    """Notes the names of the operations, but of detach: it does nothing, and torch before 2.9 calls it more often."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name != "detach":
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bf16", [False, True])
def test_weights_and_biases_are_those_of_every_convolution(bf16):
    model = random_model(channels=3)
    before = {name: convolution.weight() for name, convolution in model.convolutions()}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), folded(model):
        for name, convolution in model.convolutions():
            if convolution.transposed:
                assert convolution.folded is None
                continue
            weight, bias = convolution.folded
            assert weight.dtype == bias.dtype == (torch.bfloat16 if bf16 else torch.float32)
            assert torch.equal(weight, before[name].to(weight.dtype))
            assert torch.equal(bias, convolution.b.to(bias.dtype))
    assert all(convolution.folded is None for _, convolution in model.convolutions())


@pytest.mark.parametrize(
    ("channels", "precision"),
    [
        (1, "bf16"),
        (3, "fp32"),
        pytest.param(1, "fp32", marks=pytest.mark.whole),
        pytest.param(3, "bf16", marks=pytest.mark.whole),
    ],
)
def test_steps_are_those_of_convolutions_one_by_one(one_thread, monkeypatch, precision, channels):
    config = dataclasses.replace(CONFIG, channels=channels, dropout=0.0)
    settings = dataclasses.replace(SETTINGS, precision=precision, optimiser="muon")
    images = real_images(channels, (8, 8), 64)
    ours, plain = Trainer(config, settings, images), Trainer(config, settings, images)
    for trainer in (ours, plain):
        trainer.initialise()
    losses, calls = [], []
    for trainer in (ours, plain):
        if trainer is plain:
            monkeypatch.setattr("pxfast.pixelcnn.training.trainer.folded", lambda model: contextlib.nullcontext())
        losses.append([trainer.train_step() for _ in range(2)])
        with Calls() as counted:
            losses[-1].append(trainer.train_step())
        calls.append(counted.names)
    assert losses[0] == losses[1]
    for (name, value), other in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(value, other), name
    convolutions = [each for _, each in ours.model.convolutions() if not each.transposed]
    assert calls[1].count("_weight_norm_interface") == len(convolutions)
    assert calls[0].count("_weight_norm_interface") == len({each.v.shape for each in convolutions})
    assert len(calls[0]) < len(calls[1]) - 2 * len(convolutions)


def test_gradients_have_the_strides_of_their_parameters():
    """Else the optimisers' lists of tensors are gone through one by one on a GPU."""
    trainer = Trainer(CONFIG, SETTINGS, real_images(1, (8, 8), 64))
    trainer.initialise()
    trainer.train_step()
    with trainer.autocast():
        trainer._log_prob(trainer.batch(1)).mean().backward()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name
