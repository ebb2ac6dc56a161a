"""The program that tries a GPU's kernels, with what runs on the CPU in their place."""

import dataclasses
import functools
import re
import types

import pytest
import torch
from support.helpers import plain_mixture_log_prob

from pxfast.engines import compiled, cpu, cuda_plans
from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import ENGINES
from pxfast.engines.settings import DEFAULTS, DecodeSettings
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


def the_team_matters(schedule, images, chooser, *, settings=DEFAULTS, **options):
    result = cpu.decode(schedule, images, chooser, **options)
    if settings.team == 44:
        result[1, 0, 20, 20] ^= 1
    return result


def a_few_values_are_wrong(schedule, images, chooser, **options):
    """Within the range, and too few to move the mean: in bf16 this passes ``verify``."""
    result = cpu.decode(schedule, images, chooser, **options)
    result[-1, 0, -1, -3:] = (images[-1, 0, -1, -3:].int() + 16).clamp(max=255).to(torch.uint8)
    return result


def ranges_are_ignored(schedule, images, chooser, **options):
    """An engine that knows ±eps alone."""
    chooser = Greedy(16) if chooser.within is not None else chooser
    return cpu.decode(schedule, images, chooser, **options)


def test_an_engine_that_ignores_ranges_is_found():
    found = trial.judge_engine(engine_of(ranges_are_ignored), CASES, 4)
    assert found is not None
    assert "NOT within the ranges" in found


def nothing_done(schedule, images, chooser, **options):
    return images.clone()


def test_an_exact_engine_passes():
    assert trial.judge_engine(engine_of(cpu.decode), CASES, 3, ways=cuda_plans.plans(132, True)[-1:]) is None


def test_a_plan_that_changes_bits_is_named():
    ways = cuda_plans.plans(132, clusters=True)
    assert ways[1] == DecodeSettings(order="sequential", team=44, clusters=False)
    found = trial.judge_engine(engine_of(the_team_matters), CASES, 3, ways[1:3])
    assert found == ("fashion-mnist, fp32: 1 of 3 images become others by another plan: sequential, teams of 44")


def test_a_few_wrong_values_fail_by_the_largest_regret():
    engine = engine_of(a_few_values_are_wrong)
    found = trial.judge_engine(engine, (("fashion-mnist", "bf16"),), 2)
    assert re.fullmatch(r"fashion-mnist, bf16: a regret of .* nats is more than 0.4: passed \(bf16\): .*", found)


def test_the_cuda_engine_is_tried_by_every_plan(monkeypatch):
    """Of an H100: all blocks in a team, a third of them, one; either order; clusters; with many images a team."""
    gpu = types.SimpleNamespace(multiprocessors=132, clusters=32)
    monkeypatch.setattr(compiled, "_C", types.SimpleNamespace(cuda_device=lambda device: gpu))
    seen = {}
    monkeypatch.setattr(trial, "judge_engine", lambda engine, **options: seen.update(options))
    trial._judge(ENGINES["cuda"], 0)
    teams = [(way.order, way.team, way.clusters) for way in seen["ways"]]
    ways = ((1, False), (44, False), (132, False), (None, True))
    assert teams == [(order, *way) for order in ("sequential", "speculative") for way in ways]
    assert seen["count"] > 2 * 132, "teams of one block have several images"
    assert all(seen["count"] % (132 // team) for team in (1, 44)), "and not all as many"
    assert cuda_plans.plans(2, clusters=False)[-1] == DecodeSettings(order="speculative", team=2, clusters=False)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("out of memory"), MemoryError("out of memory"), RuntimeError("CUDA error: out of memory")],
)
def test_want_of_memory_is_no_verdict(monkeypatch, capsys, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(trial, "_judge", refuse)
    assert trial.main(["cpu", "0"]) == trust.UNTRIED
    assert capsys.readouterr().out.endswith("out of memory\n")


@pytest.mark.parametrize(
    ("decode", "expected"),
    [
        (one_value_off, "NOT within"),
        (nothing_done, "FAILED"),
        (the_batch_matters, "an image alone does not become what it becomes among 3"),
    ],
)
def test_what_is_wrong_is_said(decode, expected):
    found = trial.judge_engine(engine_of(decode), CASES, 3)
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
    assert trust.run(trust.command_of("cpu", 0), trust.SECONDS) == (True, None)


@pytest.mark.process
@pytest.mark.gpu
@pytest.mark.timeout(1000)  # Triton compiles
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cuda", marks=pytest.mark.engine("cuda")),
        pytest.param("triton", marks=pytest.mark.engine("triton")),
        pytest.param("likelihood", marks=pytest.mark.engine("triton"), id="triton-likelihood"),
    ],
)
def test_this_gpu_passes_its_trial(name):
    assert trust.run(trust.command_of(name, 0), trust.seconds_of(name)) == (True, None)
