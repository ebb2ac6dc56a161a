"""Bits/dim and log-probability of images."""

import copy
import math

import numpy as np
import pytest
import torch

import pxfast
from pxfast.pixelcnn.heads import HEADS
from pxfast.pixelcnn.oracle import oracle


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("head", HEADS)
def test_log_prob_is_the_sum_over_sub_pixels(make_model, images, head):
    model = make_model(channels=3, head=head)
    with torch.no_grad():
        expected = model.log_probs(images).gather(-1, images.long().unsqueeze(-1)).double().sum((1, 2, 3, 4))
    found = pxfast.log_prob(images, model=model)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    bits = pxfast.bits_per_dim(images, model=model)
    assert bits.dtype == torch.float32
    torch.testing.assert_close(bits.double(), -expected / (192 * math.log(2)), rtol=1e-5, atol=0)


def test_library_rank_and_batches(tiny_colour_model, images):
    whole = pxfast.bits_per_dim(images, model=tiny_colour_model)
    parts = pxfast.bits_per_dim(images, model=tiny_colour_model, batch_size=2)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=0)
    array = pxfast.bits_per_dim(images.numpy(), model=tiny_colour_model)
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, whole.numpy())
    single = pxfast.bits_per_dim(images[1], model=tiny_colour_model)
    assert single.shape == ()
    torch.testing.assert_close(single, whole[1], rtol=1e-5, atol=0)
    assert pxfast.bits_per_dim(images[:0], model=tiny_colour_model).shape == (0,)
    assert pxfast.log_prob(images[:0].numpy(), model=tiny_colour_model).dtype == np.float64


def test_dropout_and_training_mode_play_no_part(make_model, images):
    model = make_model(channels=3, dropout=0.5)
    expected = pxfast.bits_per_dim(images, model=model)
    assert torch.equal(pxfast.bits_per_dim(images, model=copy.deepcopy(model).train()), expected)


def test_progress_and_refusals(tiny_colour_model, images, capsys):
    pxfast.bits_per_dim(images, model=tiny_colour_model, progress=True)
    assert "5/5" in capsys.readouterr().err
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        pxfast.bits_per_dim(images, model=tiny_colour_model, batch_size=0)
    with pytest.raises(ValueError, match=r"got \(1, 8, 8\)"):
        pxfast.log_prob(images[:, :1], model=tiny_colour_model)


@pytest.mark.gpu
@pytest.mark.parametrize("head", HEADS)
def test_images_on_a_gpu_are_judged_there(make_model, images, head):
    model = make_model(channels=3, head=head)
    expected = pxfast.log_prob(images, model=model)
    found = pxfast.log_prob(images.cuda(), model=model)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=0)
    device = torch.device("cuda", torch.cuda.current_device())
    assert next(oracle(model, "fp32", device).parameters()).device == device
