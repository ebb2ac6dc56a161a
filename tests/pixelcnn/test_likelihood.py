"""Bits/dim and log-probability of images."""

import copy
import math

import numpy as np
import pytest
import torch
from support.helpers import bundled_images

import pxfast
from pxfast.pixelcnn import likelihood
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


@pytest.mark.parametrize("head", HEADS)
def test_surprise_is_the_bits_of_every_sub_pixel(make_model, images, head):
    """Each value is that of the 256-way distribution; an image's mean is its bits/dim; what is behind plays no part."""
    model = make_model(channels=3, head=head)
    found = pxfast.surprise(images, model=model)
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    with torch.no_grad():
        nats = model.log_probs(images).gather(-1, images.long().unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found.double(), -nats.double() / math.log(2), rtol=1e-5, atol=1e-5)
    bits = pxfast.bits_per_dim(images, model=model)
    torch.testing.assert_close(found.double().mean((1, 2, 3)), bits.double(), rtol=2**-23, atol=0)
    mixed = torch.cat((images[:1, :, :5], images[1:2, :, 5:]), dim=2)
    again = pxfast.surprise(mixed, model=model)
    torch.testing.assert_close(again[:, :, :5], found[:1, :, :5], rtol=1e-5, atol=1e-5)
    assert (again[:, :, 5:] - found[:1, :, 5:]).abs().max() > 1


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_the_mean_surprise_of_real_images_is_their_bits_per_dim(name):
    real = bundled_images(1 if name == "fashion-mnist" else 3)[:3]
    bits = pxfast.bits_per_dim(real.numpy())
    found = pxfast.surprise(real.numpy(), model=name)
    np.testing.assert_allclose(found.astype(np.float64).mean((1, 2, 3)), bits, rtol=2**-23)


def test_surprise_comes_in_the_form_of_the_images(tiny_colour_model, images):
    found = pxfast.surprise(images, model=tiny_colour_model)
    array = pxfast.surprise((images.double() / 255).numpy(), model=tiny_colour_model)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, found.numpy())
    single = pxfast.surprise(images[1], model=tiny_colour_model)
    assert single.shape == (3, 8, 8)
    torch.testing.assert_close(single, found[1], rtol=1e-5, atol=1e-5)
    parts = pxfast.surprise(images, model=tiny_colour_model, batch_size=2)
    torch.testing.assert_close(parts, found, rtol=1e-5, atol=1e-5)
    assert pxfast.surprise(images[:0], model=tiny_colour_model).shape == (0, 3, 8, 8)
    assert pxfast.surprise(images[:0].numpy(), model=tiny_colour_model).dtype == np.float32


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


def test_a_function_is_told_how_many_images_are_done(tiny_colour_model, images):
    for call in (pxfast.log_prob, pxfast.bits_per_dim, pxfast.surprise):
        told = []
        call(images, model=tiny_colour_model, batch_size=2, progress=told.append)
        assert told == [2, 4, 5]


@pytest.mark.gpu
@pytest.mark.parametrize("head", HEADS)
def test_images_on_a_gpu_are_judged_there(make_model, images, head):
    model = make_model(channels=3, head=head)
    expected = pxfast.log_prob(images, model=model)
    found = pxfast.log_prob(images.cuda(), model=model)
    assert found.device.type == pxfast.surprise(images.cuda(), model=model).device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=0)
    device = torch.device("cuda", torch.cuda.current_device())
    assert next(oracle(model, "fp32", device).parameters()).device == device


def test_gradients_are_computed_by_cudnn_in_fp32(tiny_colour_model, images, monkeypatch):
    """Where there is a GPU: without cuDNN they would be slow, and in TF32 they would be rounded."""
    asked = []
    real = likelihood._value_and_gradient

    def noted(*arguments):
        asked.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
        return real(*arguments)

    monkeypatch.setattr(likelihood, "_value_and_gradient", noted)
    likelihood.log_prob_gradient(images[:1].float() / 255, model=tiny_colour_model)
    likelihood.log_prob_and_gradient(images[:1].float() / 255, model=tiny_colour_model)
    assert asked == [(True, False)] * 2
