"""A grown network begins as the function that it was grown from, and learns with all that it has."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.helpers import real_images, trained_model

import pxfast
from pxfast.pixelcnn.files import load_model, save
from pxfast.pixelcnn.training import Trainer, TrainingSettings
from pxfast.pixelcnn.training.growth import grown


@settings(deadline=None, max_examples=5)
@given(
    channels=st.sampled_from([1, 3]),
    wider=st.integers(0, 5),
    deeper=st.integers(0, 2),
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_log_probabilities_stay(channels: int, wider: int, deeper: int, dropout: float) -> None:
    small = trained_model((8, 8), channels, 5, 1)
    images = real_images(channels, (8, 8), 8)
    config = dataclasses.replace(small.config, filters=5 + wider, resnets=1 + deeper, dropout=dropout)
    large = grown(small, config, images[:4]).eval()
    assert large.config == config
    with torch.no_grad():
        torch.testing.assert_close(large.log_prob(images), small.log_prob(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["logistic", "softmax", "pixelcnn++"])
def test_every_head_and_more_layers_than_before(head: str) -> None:
    small = trained_model((8, 8), 3, 4, 2, head, steps=4)
    images = real_images(3, (8, 8), 8)
    large = grown(small, dataclasses.replace(small.config, filters=9, resnets=5), images)
    with torch.no_grad():
        torch.testing.assert_close(large.log_prob(images), small.log_prob(images), rtol=1e-4, atol=1e-4)


def test_the_same_size_is_a_copy() -> None:
    small = trained_model((8, 8), 1, 5, 1)
    copy = grown(small, small.config, real_images(1, (8, 8), 4))
    for name, value in small.state_dict().items():
        assert torch.equal(copy.state_dict()[name], value), name


def test_what_is_new_learns(tmp_path) -> None:
    """A grown network beats the small one on its training images, by weights that had been zero too."""
    small = trained_model((8, 8), 1, 5, 1)
    images = real_images(1, (8, 8), 16)
    config = dataclasses.replace(small.config, filters=8, resnets=2)
    trainer = Trainer(
        config, TrainingSettings(batch_size=8, epochs=8, optimiser="muon", warmup=5, precision="fp32"), images
    )
    trainer.initialise(small)
    before = trainer.evaluate(trainer.averaged, images)
    with torch.no_grad():
        assert before == pytest.approx(-small.log_prob(images).mean().item() / math.log(2), abs=1e-4)
    begun = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    while trainer.step < trainer.total_steps:
        trainer.train_step()
    assert trainer.evaluate(trainer.averaged, images) < before - 0.05
    after = trainer.model.state_dict()
    assert after["down.0.1.vertical.conv_out.g"].abs().min() > 0, "a layer that was silent"
    assert begun["output.v"][:, 5:].abs().max() == 0, "the output did not look at the new features,"
    assert after["output.v"][:, 5:].abs().min() > 0, "and does now"
    path = tmp_path / "grown.safetensors"
    save(trainer.averaged, path)
    model = load_model(path)
    purified = pxfast.purify(images[:4], eps=8, model=model)
    assert pxfast.verify(images[:4], purified, eps=8, model=model, precision="bf16").passed


@pytest.mark.parametrize(
    "change", [{"filters": 4}, {"resnets": 1}, {"channels": 3}, {"head": "softmax"}, {"mixtures": 7}]
)
def test_what_is_no_larger_network_of_its_kind_is_refused(change: dict) -> None:
    small = trained_model((8, 8), 1, 5, 2, steps=0)
    with pytest.raises(ValueError, match="or a narrower or shallower one, got PixelCNNConfig"):
        grown(small, dataclasses.replace(small.config, **change), real_images(1, (8, 8), 4))
