"""Training: it learns by its schedule, measures, and refuses what would spoil a run."""

import copy
import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.helpers import real_images
from support.small_training import CONFIG, SETTINGS, position

from pxfast.data.datasets import load_dataset
from pxfast.pixelcnn.files import load_model, read_metadata, save
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig
from pxfast.pixelcnn.training import Trainer, TrainingSettings, record_bits_per_dim, train
from pxfast.pixelcnn.training import trainer as trainer_module
from pxfast.pixeldefend.detection import Detector
from pxfast.tensors.batches import fewer_if_large
from pxfast.training.provenance import training_parts
from pxfast.training.run import checkpoint_path


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_learning_rates_follow_their_schedule(optimiser):
    images = real_images(1, (8, 8), 64)
    settings = dataclasses.replace(SETTINGS, warmup=10, learning_rate=0.3, muon_learning_rate=0.6, optimiser=optimiser)
    trainer = Trainer(CONFIG, settings, images)
    assert trainer.total_steps == 40
    expected = {0: 0.1, 4: 0.5 * 0.5 * (1 + math.cos(math.pi * 4 / 40)), 20: 0.5, 40: 0.0}
    for trainer.step, factor in expected.items():
        assert trainer.learning_rate() == pytest.approx(0.3 * factor)
    trainer.settings = dataclasses.replace(settings, schedule="linear")
    for trainer.step, factor in {0: 0.1, 4: 0.5 * 0.9, 20: 0.5, 40: 0.0}.items():
        assert trainer.learning_rate() == pytest.approx(0.3 * factor)
    trainer.settings = dataclasses.replace(settings, schedule="wsd", decay_share=0.25)
    for trainer.step, factor in {0: 0.1, 9: 1.0, 30: 1.0, 35: 0.5, 40: 0.0}.items():
        assert trainer.learning_rate() == pytest.approx(0.3 * factor)
    trainer.settings = dataclasses.replace(settings, schedule="wsd", decay_share=0.0)
    assert trainer.learning_rate() == 0.0  # at step 40 of 40
    trainer.step = 39
    assert trainer.learning_rate() == pytest.approx(0.3)
    slow = dataclasses.replace(settings, schedule="exponential", decay=0.9, warmup=0)
    trainer = Trainer(CONFIG, slow, images)
    trainer.initialise()
    for step in range(3):
        assert trainer.learning_rate() == pytest.approx(0.3 * 0.9 ** (step + 1))
        trainer.train_step()
        used = [group["lr"] for each in trainer.optimisers for group in each.param_groups]
        peaks = [0.6, 0.6, 0.3] if optimiser == "muon" else [0.3]
        assert used == pytest.approx([peak * 0.9 ** (step + 1) for peak in peaks])


@pytest.mark.parametrize("clip", [0.5, 0.0])
def test_steps_are_adams_along_the_clipped_gradient_of_bits_per_dim(clip):
    """Adam's averages are those of PixelCNN++'s code, 0.95 and 0.9995; 0 clips nothing."""
    settings = dataclasses.replace(SETTINGS, gradient_clip=clip, learning_rate=1e-2)
    trainer = Trainer(dataclasses.replace(CONFIG, dropout=0.0), settings, real_images(1, (8, 8), 64))
    trainer.initialise()
    twin = copy.deepcopy(trainer.model)
    adam = torch.optim.Adam(twin.parameters(), betas=(0.95, 0.9995))
    for step in range(4):
        images = trainer.batch(step)
        loss = -twin.log_probs(images).gather(-1, images.long()[..., None]).mean() / math.log(2)
        twin.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in twin.parameters()))
        assert norm > 0.5, "which is clipped"
        for parameter in twin.parameters():
            parameter.grad *= clip / norm if clip else 1.0
        adam.param_groups[0]["lr"] = trainer.learning_rate()
        adam.step()
        assert trainer.train_step() == pytest.approx(loss.item(), abs=1e-4)
    for ours, theirs in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_loss_falls_on_real_images():
    config = PixelCNNConfig((8, 8), channels=1, filters=6, resnets=1)
    images = real_images(1, (8, 8), 80)
    held_out, images = images[:16], images[16:]  # crops of the same photographs, but not the same crops
    trainer = Trainer(config, TrainingSettings(batch_size=8, epochs=4, warmup=5, learning_rate=1e-2), images)
    trainer.initialise()
    before = trainer.evaluate(trainer.averaged, held_out)
    losses = [trainer.train_step() for _ in range(trainer.total_steps)]
    assert len(losses) == 32
    after = trainer.evaluate(trainer.averaged, held_out)
    assert sum(losses[-8:]) < sum(losses[:8]) - 8 * 0.5
    assert after < before - 0.5
    assert 1.0 < after < 8.0  # 8 bits are a coin toss per bit; less than one would be a leak of the answer


@pytest.mark.whole
def test_loss_falls_on_fashion_mnist(data_root):
    images, _ = load_dataset("fashion-mnist", data_root, train=True)
    config = PixelCNNConfig((28, 28), channels=1, filters=8, resnets=1)
    trainer = Trainer(config, TrainingSettings(batch_size=8, epochs=30, warmup=3, learning_rate=5e-3), images[:8])
    trainer.initialise()
    losses = [trainer.train_step() for _ in range(12)]
    assert losses[-1] < losses[0] - 0.5


def test_the_order_of_data_depends_on_seed_and_step_alone():
    images = real_images(1, (8, 8), 64)
    first, second = Trainer(CONFIG, SETTINGS, images), Trainer(CONFIG, SETTINGS, images)
    forwards = [first.batch(step) for step in range(9)]
    for step in reversed(range(9)):
        assert torch.equal(second.batch(step), forwards[step])
    other = Trainer(CONFIG, dataclasses.replace(SETTINGS, seed=1), images)
    assert not torch.equal(other.batch(0), forwards[0])
    assert not torch.equal(forwards[4], forwards[0]), "each epoch has its own order"
    unflipped = Trainer(CONFIG, dataclasses.replace(SETTINGS, horizontal_flips=False), images)
    epoch = torch.cat([unflipped.batch(step) for step in range(4)]).flatten(1)
    assert torch.equal(epoch.unique(dim=0), images.flatten(1).unique(dim=0)), "every image once an epoch"


SHORT_AVERAGE = dataclasses.replace(SETTINGS, epochs=1, ema_decay=0.25)


def test_the_average_forgets_its_start_as_fast_as_it_can():
    images = real_images(1, (8, 8), 64)
    settings = SHORT_AVERAGE
    trainer = Trainer(CONFIG, settings, images)
    trainer.initialise()
    average = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    for step in range(trainer.total_steps):
        trainer.train_step()
        decay = min(0.25, (1 + step) / (10 + step))  # the average forgets its start as fast as it can at first
        for mean, parameter in zip(average, trainer.model.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
    for mean, averaged in zip(average, trainer.averaged.parameters(), strict=True):
        torch.testing.assert_close(averaged.detach(), mean)
    assert trainer.best()[0] is min((trainer.averaged, trainer.model), key=lambda each: trainer.evaluate(each, images))


@pytest.mark.parametrize("better", ["averaged", "last"])
def test_the_better_of_the_averaged_and_the_last_weights_are_saved(tmp_path, monkeypatch, better):
    images, settings = real_images(1, (8, 8), 64), SHORT_AVERAGE
    monkeypatch.setattr(Trainer, "evaluate", lambda self, model, _: float((model is self.model) == (better != "last")))
    out = tmp_path / "model.safetensors"
    returned = train(CONFIG, images, out, settings=settings, progress=False)
    saved = load_file(out)
    for name, convolution in returned.convolutions():
        assert torch.equal(saved[f"{name}.weight"], convolution.weight().detach().bfloat16())
    raw = load_file(checkpoint_path(out))
    assert not torch.equal(raw["model.output.v"], raw["averaged.output.v"])
    kept = {"averaged": "averaged", "last": "model"}[better]
    folded = torch._weight_norm(raw[f"{kept}.output.v"], raw[f"{kept}.output.g"].reshape(-1, 1, 1, 1), 0)
    torch.testing.assert_close(folded, returned.output.v.detach(), rtol=2**-7, atol=0)  # that is rounded to bf16
    assert not returned.training
    notes = json.loads(safe_open(out, framework="pt").metadata()["notes"])
    assert notes["steps"] == 4
    assert notes["images_seen"] == 64
    assert notes["weights"] == better


@pytest.mark.parametrize("head", ["logistic", "softmax"])
def test_the_model_that_a_training_returns_is_the_one_of_its_file(tmp_path, head):
    images, out = real_images(3, (8, 8), 16), tmp_path / "model.safetensors"
    config = dataclasses.replace(CONFIG, channels=3, head=head)
    settings = dataclasses.replace(SETTINGS, epochs=2, learning_rate=0.05)
    returned = train(config, images, out, settings=settings, progress=False)
    stored = load_model(out)
    for (name, ours), theirs in zip(returned.named_parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0, msg=name)
    assert returned.notes == stored.notes
    Detector(returned).fit(images).save(tmp_path / "detector.safetensors")
    assert Detector.load(tmp_path / "detector.safetensors", out).log_likelihoods is not None


def test_a_run_on_large_images_takes_fewer_of_them_at_once(monkeypatch):
    images = torch.zeros(132, 1, 128, 96, dtype=torch.uint8)
    config, settings = PixelCNNConfig((128, 96), 1, 2, 1, mixtures=1), dataclasses.replace(SETTINGS, batch_size=2)
    trainer = Trainer(config, settings, images)
    seen = []
    monkeypatch.setattr(PixelCNN, "initialise", lambda self, batch: seen.append(len(batch)))
    monkeypatch.setattr(PixelCNN, "log_prob", lambda self, batch: seen.append(len(batch)) or torch.zeros(batch.shape))
    trainer.initialise()
    trainer.evaluate(trainer.averaged, images[:45])
    assert seen == [42, 21, 21, 3]  # of pixels as many as 128 and 64 images of 64 x 64 have, or less
    assert [fewer_if_large(64, torch.zeros(1, 1, side, side)) for side in (28, 64, 2048)] == [64, 64, 1]


def test_before_its_end_a_run_keeps_the_averaged_weights():
    trainer = Trainer(CONFIG, SETTINGS, real_images(1, (8, 8), 64))
    trainer.initialise()
    trainer.train_step()
    assert trainer.best() == (trainer.averaged, "averaged")


def test_the_notes_tell_of_all_runs_that_made_the_weights(tmp_path):
    images, settings = real_images(1, (8, 8), 32), dataclasses.replace(SETTINGS, epochs=1)
    first, second, third = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "third"))
    train(CONFIG, images, first, settings=settings, progress=False)
    _, alone = read_metadata(first)
    assert "parts" not in alone
    assert alone["machine"].startswith(f"{torch.get_num_threads()} thread")
    more = dataclasses.replace(settings, seed=1)
    given = {"start": load_model(first), "earlier": training_parts(alone), "progress": False}
    train(CONFIG, images, second, settings=more, **given)
    _, both = read_metadata(second)
    assert [part["training"]["seed"] for part in both["parts"]] == [0, 1]
    assert both["parts"][0] == alone
    assert both["images_seen"] == 2 * alone["images_seen"]
    train(CONFIG, images, second, settings=more, resume=True, progress=False)
    assert len(read_metadata(second)[1]["parts"]) == 2, "a resumed run is still the second"
    train(CONFIG, images, third, settings=settings, start=load_model(second), earlier=both["parts"], progress=False)
    assert read_metadata(third)[1]["steps"] == 3 * alone["steps"]


def test_the_budget_plans_the_rate_and_ends_the_run(tmp_path, monkeypatch):
    ticks = itertools.count(step=0.125)  # a clock by which every step takes an eighth of a second
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    settings = dataclasses.replace(SETTINGS, epochs=1e9, budget=1.0, warmup=0)
    rates, true_step = [], Trainer.train_step

    def noted_step(self):
        rates.append(self.learning_rate())
        return true_step(self)

    monkeypatch.setattr(Trainer, "train_step", noted_step)
    out, images = tmp_path / "model.safetensors", real_images(1, (8, 8), 64)
    train(CONFIG, images, out, settings=settings, progress=False)
    assert json.loads(safe_open(out, framework="pt").metadata()["notes"])["steps"] == 8
    assert rates == pytest.approx([settings.learning_rate * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])
    trainer = Trainer(CONFIG, settings, images)
    trainer.restore(checkpoint_path(out))
    assert trainer.seconds == trainer.progress == 1.0
    assert trainer.learning_rate() == pytest.approx(0.0, abs=1e-12)


def test_validation_is_recorded_at_every_checkpoint(tmp_path):
    out = tmp_path / "model.safetensors"
    images = real_images(1, (8, 8), 64)
    settings = dataclasses.replace(SETTINGS, epochs=1)
    model = train(
        CONFIG, images[16:], out, settings=settings, validation=images[:16], checkpoint_interval=0, progress=False
    )
    history = json.loads(safe_open(checkpoint_path(out), framework="pt").metadata()["history"])
    assert [entry["step"] for entry in history] == [1, 2, 3]  # at every interval (0 s), of which one ends with the run
    with torch.no_grad():
        expected = -float(model.log_prob(images[:16]).mean()) / math.log(2)
    assert history[-1]["validation_bits_per_dim"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, where):
    out = tmp_path / "model.safetensors"
    true_step = Trainer.train_step

    def spoilt_step(self):
        if self.step == 3:
            honest = self._log_prob
            if where == "loss":
                self._log_prob = lambda images: honest(images) * math.nan
            else:
                self.model.output.g.register_hook(lambda gradient: gradient * math.inf)
        return true_step(self)

    monkeypatch.setattr(Trainer, "train_step", spoilt_step)
    with pytest.raises(FloatingPointError, match="step 3"):
        train(CONFIG, real_images(1, (8, 8), 64), out, settings=SETTINGS, checkpoint_interval=0, progress=False)
    assert position(checkpoint_path(out)) == 3
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint_path(out)).values())
    assert all(tensor.isfinite().all() for tensor in load_file(out).values())


def test_a_step_that_broke_down_leaves_nothing_to_the_next():
    images = real_images(1, (8, 8), 64)
    trainer, other = (Trainer(CONFIG, SETTINGS, images) for _ in range(2))
    honest = trainer._log_prob
    trainer._log_prob = lambda images: honest(images) * math.nan
    with pytest.raises(FloatingPointError, match="step 0"):
        trainer.train_step()
    trainer._log_prob = honest
    assert trainer.train_step() == other.train_step()
    for ours, theirs in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"budget": 0.0}, "budget"),
        ({"budget": math.nan}, "budget"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"gradient_clip": -1.0}, "gradient_clip"),
        ({"warmup": -1}, "warmup"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"precision": "fp16"}, "precision"),
        ({"optimiser": "sgd"}, "optimiser must be one of adam, muon, got 'sgd'"),
        ({"muon_learning_rate": 0.0}, "muon_learning_rate"),
        ({"schedule": "step"}, "schedule must be one of cosine, linear, exponential, wsd, got 'step'"),
        ({"decay": 1.0}, "decay"),
        ({"decay_share": 1.5}, "decay_share"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**changes)


@pytest.mark.parametrize(
    "images", [torch.zeros(4, 1, 8, 12, dtype=torch.uint8), torch.zeros(4, 1, 8, 8), torch.zeros(0, 1, 8, 8).byte()]
)
def test_wrong_images_are_told(images):
    with pytest.raises((TypeError, ValueError), match=r"expected uint8 training images \(N, 1, 8, 8\), N > 0, got"):
        Trainer(CONFIG, SETTINGS, images)


def test_a_run_may_start_from_a_model(tmp_path):
    images = real_images(1, (8, 8), 64)
    settings = dataclasses.replace(SETTINGS, epochs=1)
    first = train(CONFIG, images, tmp_path / "first.safetensors", settings=settings, progress=False)
    trainer = Trainer(CONFIG, SETTINGS, images)
    trainer.initialise(first)
    assert trainer.evaluate(trainer.averaged, images) == pytest.approx(
        -first.log_prob(images).mean().item() / math.log(2), abs=1e-4
    )
    other = Trainer(dataclasses.replace(CONFIG, filters=5), SETTINGS, images)
    with pytest.raises(ValueError, match=r"expected to start from a model of .*filters=5.* got .*filters=6"):
        other.initialise(first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bits_per_dim_is_measured_and_kept_in_the_file(finished, tmp_path, dtype):
    images, out = real_images(1, (8, 8), 9), tmp_path / "m.safetensors"
    model = load_model(finished)
    save(model, out, dtype=dtype, notes=read_metadata(finished)[1])
    before = load_file(out)
    mean = record_bits_per_dim(out, images[:9])
    _, notes = read_metadata(out)
    assert notes["test_images"] == 9
    assert notes["test_bits_per_dim"] == pytest.approx(mean, abs=1e-5)
    assert notes["images_seen"] == 64, "what was there before stays"
    expected = -load_model(out).log_prob(images[:9]).double().mean().item() / math.log(2)
    assert mean == pytest.approx(expected, abs=1e-5)
    after = load_file(out)
    assert all(torch.equal(after[name], before[name]) for name in before), "the weights are as they were"
    assert {name: each.dtype for name, each in after.items()} == {name: each.dtype for name, each in before.items()}
