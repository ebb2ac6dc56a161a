"""Training a classifier: SGD with momentum, flips and shifts, and the training-time defences of the paper."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.checks import check_choice, check_levels, check_optional_count, check_path, check_text
from ..base.durations import phase
from ..data.datasets import DATASETS, first_images, keeps_class_mirrored, load_dataset
from ..tensors.ambient import in_plain_torch
from ..tensors.safetensors import fill, metadata_json, stored_tensors
from ..training.checkpoints import check_state, read_checkpoint, write_checkpoint
from ..training.compilation import duration_key
from ..training.loop import run_to_the_end
from ..training.outputs import run_outputs
from ..training.processes import Processes
from ..training.run import TrainingRun, alone, check_training_images, laid_out_like
from ..training.settings import RunSettings, run_settings
from ..training.settle import settle
from .adversarial import attacked, bim_examples, draw_eps, fgsm_examples
from .architectures import architecture_for, build
from .classifier import Classifier, ClassifierConfig, standardise
from .contract import class_labels
from .losses import consistent_cross_entropy, mixed_cross_entropy, smoothed_cross_entropy
from .prediction import accuracy
from .weights import SHIPPED, load_classifier, read_notes, runs_in, save_classifier

CHECKPOINT_FORMAT = "pxfast-classifier-training"
DEFENCES = ("none", "fgsm", "bim", "label-smoothing")
ADVERSARIES = {"fgsm": fgsm_examples, "bim": bim_examples}
TEST_IMAGES = 1000  # so many are brought behind a defence for the accuracy there


class Preparation(Protocol):
    """What makes the images that a classifier sees of a data set's: uint8 (N, C, H, W) both.

    Made by :mod:`pxfast.defences.behind`, from the same settings as the training. versions: how often each training
    image comes, in another version each time; the first versions of all images stand first, then the second ones.
    """

    versions: int

    def training(self, images: Tensor, labels: Tensor, start: Classifier | None) -> tuple[Tensor, Tensor]:
        """The images to train on, and their labels (N,); start: the classifier that the training starts from."""
        ...

    def seen(self, images: Tensor) -> Tensor:
        """What the classifier sees of each image when it is used."""
        ...


@dataclasses.dataclass(frozen=True)
class ClassifierSettings(RunSettings):
    """How to train: see :class:`pxfast.training.settings.RunSettings`, and more.

    Stochastic gradient descent by ``batch_size``, ``learning_rate``, ``momentum`` and ``weight_decay``. The learning
    rate rises linearly over the first tenth of the run. ``seed``: of the weights and the order of images.
    ``horizontal_flips``: None: where mirror images of the data set's are of the same class, as those of garments and
    animals are and those of digits are not; of a folder nobody knows, and none is flipped.

    ``max_shift``: images are moved by up to so many
    pixels each way, zeros moving in. ``defence``: 'none'; 'fgsm' or 'bim', adversarial training, where the second
    half of each batch is attacked with an eps from |N(0, delta)| truncated to [0, 2 delta] and counts
    ADVERSARIAL_WEIGHT as much as the clean half; or 'label-smoothing', where the right class's target is
    1 - smoothing and the wrong classes share the rest. ``start``: a shipped classifier's name or a file, whose weights
    to begin with in place of random ones: a defence is then fine-tuned.

    ``behind``: what the classifier is to stand behind, as :mod:`pxfast.defences.behind` reads it; the images are then
    made by that. ``adversary``: what attacks the images that are purified, 'bim', 'fgsm' or 'none'; None: 'bim' where
    the classifier that the training starts from can be attacked. ``behind_images``: so many training images, drawn by
    ``seed``; None: all. ``consistency``: the weight of a loss that wants an image's versions in cells to be classified
    alike (:func:`pxfast.classifiers.losses.consistent_cross_entropy`). The second half of each batch is then other
    versions of the images in the first half.
    """

    batch_size: int = 128
    epochs: float = 12.0
    learning_rate: float = 0.1
    horizontal_flips: bool | None = None
    momentum: float = 0.9
    weight_decay: float = 2e-4
    max_shift: int = 1
    defence: str = "none"
    delta: float = 8.0
    smoothing: float = 0.1
    start: str | None = None
    behind: str | None = None
    adversary: str | None = None
    behind_images: int | None = None
    consistency: float = 0.0

    flips_by_data_set: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._count("batch_size", least=2)  # batch normalisation needs two
        self._count("max_shift")
        self._number("weight_decay", "consistency")
        check_choice("defence", self.defence, DEFENCES)
        self._number("momentum", "smoothing", high=1.0, ends="[)")
        self._number("delta", ends="()")
        check_levels("delta", self.delta)
        for name in ("start", "behind"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        if self.adversary is not None:
            check_choice("adversary", self.adversary, ("none", *ADVERSARIES))
        check_optional_count("behind_images", self.behind_images, 1)
        if self.behind is None and (self.adversary is not None or self.behind_images is not None):
            raise ValueError("adversary and behind_images are settings of a training behind a defence: say which one")
        if self.consistency and (self.behind is None or self.defence != "none" or self.batch_size % 2):
            raise ValueError(
                "consistency compares versions of images behind a defence: expected behind, defence='none' and an even "
                f"batch size, got behind={self.behind!r}, defence={self.defence!r} and {self.batch_size}"
            )
        if self.behind is not None and self.defence in ADVERSARIES:
            raise ValueError(
                f"defence {self.defence!r} attacks the images of each step, which nothing purifies then: behind a "
                f"defence say adversary={self.defence!r}"
            )
        if self.adversary in ADVERSARIES and self.start is None:
            raise ValueError(
                f"adversary {self.adversary!r} attacks the classifier to start from: expected start, got None"
            )


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image (N, C, H, W) moved by up to ``most`` pixels each way, zeros moving in."""
    if not most:
        return images
    N, C, H, W = images.shape
    rows, columns = torch.randint(0, 2 * most + 1, (2, N, 1), generator=generator)
    rows, columns = rows + torch.arange(H), columns + torch.arange(W)
    image, channel = torch.arange(N)[:, None, None, None], torch.arange(C)[None, :, None, None]
    padded = F.pad(images, (most, most, most, most))
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class ClassifierTrainer(TrainingRun):
    """A training run: model, momentum and position in the data; saved and restored as one.

    versions: how often each image is among ``images``, as :class:`Preparation` has it; ``consistency`` needs two.
    """

    settings: ClassifierSettings

    def __init__(
        self,
        config: ClassifierConfig,
        settings: ClassifierSettings,
        images: Tensor,
        labels: Tensor,
        processes: Processes | None = None,
        versions: int = 1,
    ) -> None:
        if versions < 1 or len(images) % versions or (settings.consistency and versions < 2):
            least = 2 if settings.consistency else 1
            raise ValueError(f"expected {least} or more versions of each of {len(images)} images, got {versions}")
        self.versions: int = versions
        check_training_images(images, (config.channels, *config.image_size))
        super().__init__(settings, images, processes)
        if self.processes.count > 1:
            raise ValueError(f"a classifier is trained by one process, not by {self.processes.count}")
        self.labels: Tensor = class_labels(labels, len(images), classes=config.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model: Classifier = build(config).to(self.processes.device).to(memory_format=torch.channels_last)
        self.optimiser: torch.optim.SGD = torch.optim.SGD(
            self.model.parameters(),
            settings.learning_rate,
            settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )
        self._logits = torch.compile(self.model.logits) if settings.compile else self.model.logits
        self.earlier_runs: list[dict[str, Any]] = []  # what led to the weights that the run starts from, oldest first

    def start_from(self, classifier: Classifier, notes: dict[str, Any] | None = None) -> None:
        """Begin with the weights of ``classifier``. ValueError when it is of another architecture.

        notes: those of its file, whose runs this one continues.
        """
        if classifier.config != self.model.config:
            raise ValueError(f"expected to start from a classifier of {self.model.config}, got {classifier.config}")
        self.model.load_state_dict(classifier.state_dict())
        self.earlier_runs = runs_in(notes or {})

    def batch(self) -> tuple[Tensor, Tensor]:
        """Clean uint8 images and labels of the present step, on the CPU."""
        chosen = self.chosen(self.step)
        generator = torch.Generator().manual_seed(self.step_seed(self.step))
        if self.settings.consistency:
            return self._two_versions(chosen[: len(chosen) // 2], generator)
        images = self.flipped(self.images[chosen], generator)
        return shifted(images, self.settings.max_shift, generator), self.labels[chosen]

    def _two_versions(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images of these indices (M,) and then other versions of them, moved alike, with their labels (2 M,)."""
        each = len(self.images) // self.versions
        others = each * torch.randint(1, self.versions, chosen.shape, generator=generator)
        pairs = torch.cat((self.images[chosen], self.images[(chosen + others) % len(self.images)]), dim=1)
        moved = shifted(self.flipped(pairs, generator), self.settings.max_shift, generator)
        return torch.cat(moved.chunk(2, dim=1)), self.labels[chosen].repeat(2)

    def adversarial_batch(self, images: Tensor) -> Tensor:
        """The uint8 images as fp32 in [0, 1], the second half of them attacked; the model itself is left alone."""
        generator = torch.Generator().manual_seed(self.step_seed(self.step))
        clean = len(images) // 2
        x = images.float() / 255.0
        eps = draw_eps(len(x) - clean, self.settings.delta, generator).to(x.device)
        with attacked(self.model), self.autocast():
            # not the compiled network: BIM's batches differ in size, each of which would be compiled
            attack = ADVERSARIES[self.settings.defence]
            adversarial = attack(lambda x: self.model.logits(standardise(x)), x[clean:], eps)
        return torch.cat((x[:clean], adversarial))

    def learning_rate(self) -> float:
        return min(1.0, (self.progress + 1e-3) / 0.1) * self.cosine()

    @alone
    def train_step(self) -> tuple[float, float]:
        """One step of SGD; returns the batch's cross-entropy in nats and its accuracy.

        FloatingPointError when the loss or its gradient is not finite; the weights are then as before the step.
        """
        started = time.perf_counter()
        torch.manual_seed(self.step_seed(self.step))  # dropout, the same after a resume
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        settings = self.settings
        images, labels = (part.to(self.processes.device) for part in self.batch())
        if settings.defence in ADVERSARIES:
            images = self.adversarial_batch(images)
        self.model.train()
        with self.autocast():
            logits = self._logits(standardise(images))
        if settings.defence in ADVERSARIES:
            loss = mixed_cross_entropy(logits, labels, clean=len(images) // 2)
        elif settings.consistency:
            loss = consistent_cross_entropy(logits, labels, settings.consistency)
        else:
            smoothing = settings.smoothing if settings.defence == "label-smoothing" else 0.0
            loss = smoothed_cross_entropy(logits, labels, smoothing)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), math.inf)
        found, size = torch.stack((loss.detach(), norm)).tolist()
        if not math.isfinite(found) or not math.isfinite(size):
            self.optimiser.zero_grad()  # or whoever goes on would add to gradients that are not finite
            raise FloatingPointError(f"training broke down at step {self.step}: loss {found}, gradient of norm {size}")
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.count_step(time.perf_counter() - started)
        return found, (logits.argmax(1) == labels).double().mean().item()

    def losses(self, found: tuple[float, float]) -> dict[str, float]:
        return {"train_loss": found[0], "train_accuracy": found[1]}

    def rates(self) -> dict[str, float]:
        return {"learning_rate": self.optimiser.param_groups[0]["lr"]}

    def data(self) -> dict[str, Tensor]:
        return {**super().data(), "labels": self.labels}

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            if state.get("momentum_buffer") is not None:
                tensors[f"momentum.{i}"] = state["momentum_buffer"]
        metadata = self.metadata(CHECKPOINT_FORMAT, self.model.config)
        write_checkpoint(path, tensors, {**metadata, "earlier_runs": json.dumps(self.earlier_runs)})

    def restore(self, path: Path) -> None:
        """Continue where ``save`` left off. ValueError when the checkpoint is of another model or other settings."""
        tensors, metadata = read_checkpoint(path, CHECKPOINT_FORMAT)
        self.resume_at(path, metadata, self.model.config)
        self.earlier_runs = runs_in({"earlier_runs": metadata_json(metadata, "earlier_runs", path, "[]")})
        targets = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        momenta = {f"momentum.{i}": parameter for i, parameter in enumerate(self.model.parameters())}
        check_state(tensors, {**targets, **momenta}, path, optional=momenta)
        model = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(model)
        momentum = {}
        for i, parameter in enumerate(self.model.parameters()):
            if f"momentum.{i}" in tensors:
                momentum[i] = {"momentum_buffer": laid_out_like(parameter, tensors[f"momentum.{i}"])}
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": momentum})


@in_plain_torch
@torch.enable_grad()
def train_classifier(
    dataset: str,
    arch: str,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    settings: ClassifierSettings | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    checkpoint_interval: float = 60.0,
    processes: Processes | None = None,
    preparation: Preparation | None = None,
) -> Classifier:
    """Train a classifier on a data set's training images and write it to ``out`` (safetensors).

    dataset: as :func:`pxfast.data.load_dataset` takes it, with ``root``. arch: a name that
    :func:`pxfast.classifiers.architecture` knows. The notes in the file record the settings, the time, the runs that
    ``start`` came from, and the accuracy on all test images of the weights as stored. Every ``checkpoint_interval``
    seconds the state goes to ``out`` with the suffix .checkpoint.safetensors, in shards if it is large; with ``resume``
    a killed run goes on from there with the same data order. Ctrl-C ends the run after the step at hand, with the
    checkpoint kept, and raises KeyboardInterrupt. processes: names the device; a classifier is trained by one process.
    settings: None for the defaults. progress: show a bar. preparation: what the setting ``behind`` stands for;
    :func:`pxfast.defences.train_behind` gives it. Returns the classifier as stored, on its device.
    Raises FileNotFoundError when ``root`` has no data, FloatingPointError when the loss or its gradient stops being
    finite, and what :func:`pxfast.training.outputs.run_outputs` raises.
    """
    settings = run_settings(
        settings,
        ClassifierSettings,
        resume=resume,
        force=force,
        progress=progress,
        checkpoint_interval=checkpoint_interval,
        processes=processes,
    )
    check_path("out", out)
    if (settings.behind is None) != (preparation is None):
        raise ValueError("settings.behind and preparation belong together: call pxfast.defences.train_behind")
    if settings.start is not None and not resume:
        SHIPPED.path(settings.start)
    config = architecture_for(arch, dataset)
    if settings.horizontal_flips is None:
        settings = dataclasses.replace(settings, horizontal_flips=keeps_class_mirrored(dataset))
    with run_outputs(out, resume=resume, force=force, processes=processes, progress=progress) as files:
        name = os.fspath(dataset)
        with phase(f"reading {name}", f"reading {name}", shown=progress):
            images, labels = load_dataset(dataset, root, train=True)
            test_images, test_labels = load_dataset(dataset, root, train=False)
        start = None
        if settings.start is not None and not (files.resumed and preparation is None):  # a resumed run needs it no more
            start = load_classifier(settings.start)
        if preparation is not None:
            images, labels = preparation.training(images, labels, start)
        before = files.checkpoint if files.resumed else None
        place = processes or Processes()
        settings, why = settle(settings, config, len(images), place, before, progress=progress)
        versions = 1 if preparation is None else preparation.versions
        trainer = ClassifierTrainer(config, settings, images, labels, processes, versions)
        trainer.compilation = why
        if files.resumed:
            trainer.restore(files.checkpoint)
        elif start is not None:
            trainer.start_from(start, read_notes(str(settings.start)))
        recent: tuple[float, ...] | None = None

        def describe(now: tuple[float, float]) -> str:
            nonlocal recent
            recent = tuple(0.98 * old + 0.02 * new for old, new in zip(recent or now, now, strict=True))
            return f"loss {recent[0]:.3f}, accuracy {100 * recent[1]:.1f} %"

        run_to_the_end(
            trainer,
            lambda: trainer.save(files.checkpoint),
            describe,
            config=config,
            log=files.log,
            checkpoint_interval=checkpoint_interval,
            progress=progress,
        )
        model, device = trainer.model, trainer.processes.device
        fill(model, stored_tensors(model), os.fspath(out))  # judge what is stored: weights rounded to bf16
        title = settings.measuring(f"the accuracy on {len(test_images)} test images")
        with phase(title, duration_key(title, config, settings, device), shown=progress):
            found = accuracy(model.eval(), test_images.to(device), test_labels.to(device))
        notes = {
            "dataset": name if name in DATASETS else os.path.realpath(name),
            "architecture": arch,
            "training": dataclasses.asdict(settings),
            "steps": trainer.step,
            "seconds": round(trainer.seconds),
            "test_images": len(test_images),
            "test_accuracy": found,
            "torch": torch.__version__,
        }
        if preparation is not None:
            some, their_labels = (first_images(dataset, each, TEST_IMAGES) for each in (test_images, test_labels))
            seen = preparation.seen(some).to(device)
            notes["behind_test_images"] = len(seen)
            notes["behind_test_accuracy"] = accuracy(model, seen, their_labels.to(device))
        if trainer.earlier_runs:
            notes["earlier_runs"] = trainer.earlier_runs
        if trainer.compilation is not None:
            notes["compilation"] = trainer.compilation
        with files.model.written() as temporary:
            save_classifier(model, temporary, notes=notes)
        return model
