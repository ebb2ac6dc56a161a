"""Training steps: judged when a GPU would be waited for, replayed, on images that stay where they fit."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from support.helpers import real_images
from support.small_training import CONFIG, SETTINGS

from pxfast.pixelcnn.training import Trainer
from pxfast.training.processes import Processes
from pxfast.training.run import at_hand


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_a_step_that_is_judged_when_the_optimisers_are_queued_is_the_same(one_thread, optimiser):
    """As on a GPU, which is waited for once a step; and a step that broke down is undone."""
    settings, images = dataclasses.replace(SETTINGS, optimiser=optimiser), real_images(1, (8, 8), 64)
    plain, queued = Trainer(CONFIG, settings, images), Trainer(CONFIG, settings, images)
    assert not plain.queued
    queued.queued = True
    plain.initialise()
    queued.initialise(plain.model)
    for _ in range(3):
        assert plain.train_step() == queued.train_step()
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    for network, twin in ((plain.model, queued.model), (plain.averaged, queued.averaged)):
        for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    for trainer in (plain, queued):
        trainer.model.output.g.register_hook(lambda gradient: gradient * math.inf)
        with pytest.raises(FloatingPointError, match="step 3"):
            trainer.train_step()
        assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
        assert all(value.isfinite().all() for value in trainer.averaged.state_dict().values())
        for kept in trainer.optimisers:
            assert all(value.isfinite().all() for state in kept.state.values() for value in state.values())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_replayed_steps_are_those_that_are_started_one_by_one(precision):
    settings = dataclasses.replace(SETTINGS, optimiser="muon", precision=precision)
    config, images = dataclasses.replace(CONFIG, dropout=0.0), real_images(1, (8, 8), 64)
    processes = Processes(device=torch.device("cuda", 0))
    plain = Trainer(config, settings, images, processes)
    replayed = Trainer(config, dataclasses.replace(settings, cuda_graphs=True), images, processes)
    for trainer in (plain, replayed):
        trainer.initialise()
    expected = [plain.train_step() for _ in range(12)]
    assert [replayed.train_step() for _ in range(12)] == pytest.approx(expected, abs=0.02)
    assert expected[-1] < expected[0]
    assert replayed.evaluate(replayed.model, images) == pytest.approx(plain.evaluate(plain.model, images), abs=0.02)


def test_a_step_is_recorded_once_from_a_batch_of_its_own(monkeypatch):
    """What records is a stand-in: a function of the same arguments."""
    trainer = Trainer(CONFIG, SETTINGS, real_images(1, (8, 8), 64))
    trainer.initialise()
    trainer._recorded = False
    samples = []

    def recording(log_prob, sample):
        assert not torch.is_autocast_cache_enabled()
        samples.append(sample)
        return log_prob

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recording)
    for _ in range(2):
        trainer.train_step()
    ((sample,),) = samples
    assert torch.equal(sample, trainer.batch(0))


def test_cuda_graphs_are_refused_where_they_can_not_be():
    with pytest.raises(ValueError, match="cuda_graphs are for one process on a GPU, got 1 on cpu"):
        Trainer(CONFIG, dataclasses.replace(SETTINGS, cuda_graphs=True), real_images(1, (8, 8), 64))
    with pytest.raises(ValueError, match="expected compile or cuda_graphs, got both"):
        dataclasses.replace(SETTINGS, cuda_graphs=True, compile=True)


def test_images_stay_where_they_do_not_fit_the_device(monkeypatch):
    images = real_images(1, (8, 8), 64)
    assert at_hand(images, torch.device("cpu")) is images
    properties = SimpleNamespace(total_memory=20 * images.nbytes - 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert at_hand(images, torch.device("cuda")) is images
