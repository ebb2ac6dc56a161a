"""The program that tries a GPU's kernels, with what runs on the CPU in their place."""

import dataclasses
import functools

import pytest
import torch
from support.helpers import plain_mixture_log_prob

from pxfast.engines import cpu
from pxfast.engines.registry import ENGINES
from pxfast.kernels import trust
from pxfast.pixeldefend import trial

pytestmark = pytest.mark.engine("cpu")

CASES = (("fashion-mnist", "fp32"),)


def engine_of(decode):
    """An engine that is said to run on a GPU."""
    return dataclasses.replace(ENGINES["cpu"], name="fast", summary="a test's", decode=decode, gpu=True)


def one_value_off(schedule, images, chooser, **options):
    result = cpu.decode(schedule, images, chooser, **options)
    result[..., 14, 14] = torch.where(result[..., 14, 14] < images[..., 14, 14], images[..., 14, 14], 0)
    return result


def the_batch_matters(schedule, images, chooser, **options):
    result = cpu.decode(schedule, images, chooser, **options)
    return result if len(images) > 1 else images.clone()


def nothing_done(schedule, images, chooser, **options):
    return images.clone()


def test_an_exact_engine_passes():
    assert trial.judge_engine(engine_of(cpu.decode), CASES) is None


@pytest.mark.parametrize(
    ("decode", "expected"),
    [
        (one_value_off, "NOT within"),
        (nothing_done, "FAILED"),
        (the_batch_matters, "an image alone does not become what it becomes among 21"),
    ],
)
def test_what_is_wrong_is_said(decode, expected):
    found = trial.judge_engine(engine_of(decode), CASES)
    assert found.startswith("fashion-mnist, fp32: ")
    assert expected in found


def shifted(log_prob, features, images, *settings):
    return log_prob(features, images, *settings) + 0.1


def half_a_gradient(log_prob, features, images, *settings):
    return log_prob(0.5 * features + 0.5 * features.detach(), images, *settings)


def not_a_number(log_prob, features, images, *settings):
    return log_prob(features, images, *settings) * torch.nan


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (None, None),
        (shifted, "logistic, 1 channels: the log-likelihood is off by 0.0"),
        (half_a_gradient, "logistic, 1 channels: the gradient of the log-likelihood is off by 0."),
        (not_a_number, "logistic, 1 channels: the log-likelihood is off by nan"),
    ],
)
def test_a_likelihood_is_judged(change, expected):
    twin = plain_mixture_log_prob
    found = trial.judge_likelihood(twin if change is None else functools.partial(change, twin), "cpu")
    assert found is None if expected is None else found.startswith(expected)


@pytest.mark.process
def test_the_process_that_is_started_tries_an_engine():
    assert trust.run(trust.command_of("cpu", 0)) == (True, None)


@pytest.mark.process
@pytest.mark.gpu
@pytest.mark.timeout(1000)  # Triton compiles
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cuda", marks=pytest.mark.engine("cuda")),
        pytest.param("triton", marks=pytest.mark.engine("triton")),
        pytest.param("likelihood", marks=pytest.mark.engine("triton")),
    ],
)
def test_the_kernels_of_this_gpu_pass(name):
    assert trust.run(trust.command_of(name, 0)) == (True, None)
