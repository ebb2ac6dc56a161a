"""Arguments and options of the command line, each declared once: a flag means the same in every command that has it.

A command that gives an option a default of its own says so in its help. Where one command needs a value and another
can do without, both types are declared from one description.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.environment import MOST_THREADS


def among(*values: str) -> Callable[[str], list[str]]:
    """What a shell offers after a flag: those of the values that begin with what is typed already."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def steps_of_grid(flag: str, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """What reads the value of a flag that counts steps of 0..255: for 8/255 its error says what to write."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            from ..base.checks import grid_conversion

            expected = "an integer in 0..255" if kind is int else "a number"
            raise typer.BadParameter(f"expected {expected}, got {text!r}{grid_conversion(flag, text)}") from None

    return parse


# what is worked on, and what is written

DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="fashion-mnist, cifar10, mnist, svhn, cifar100 or a folder of images.",
        autocompletion=among("fashion-mnist", "cifar10", "mnist", "svhn", "cifar100"),
    ),
]
SourceArgument = Annotated[
    Path, typer.Argument(metavar="IN", help="A folder of images, a .npy, a .pt or an image file.")
]
RootOption = Annotated[
    Path | None,
    typer.Option(help="torchvision's root folder, for data sets called by name."),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Download the data set to --root, unless it is there; else nothing is.")
]
_IMAGES = typer.Option(min=1, help="Only the first so many images; of a folder, from all over it.")
ImagesOption = Annotated[int, _IMAGES]
OptionalImagesOption = Annotated[int | None, _IMAGES]
_OUT = typer.Option(help="The file or the folder to write.")
OutOption = Annotated[Path, _OUT]
OptionalOutOption = Annotated[Path | None, _OUT]
GridOption = Annotated[
    Path | None,
    typer.Option(
        help="A PNG of images side by side: of all samples; or of the first 30 images before and after, with labels "
        "and bits/dim."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]

KeepOption = Annotated[
    Path | None,
    typer.Option(help="A folder that keeps what was purified; later runs find it there."),
]

# networks, defences and attacks

MODEL = typer.Option(help="A shipped model's name or a model file; by default a shipped one of the images' shape.")
ModelOption = Annotated[str | None, MODEL]
ClassifierOption = Annotated[
    str | None,
    typer.Option(help="A shipped classifier's name or a file; by default the data set's shipped one."),
]
ClassifiersOption = Annotated[
    Path | None, typer.Option(help="The folder of trained classifiers; by default OUT/classifiers.")
]
ViewsOption = Annotated[
    str,
    typer.Option(help="one, or flip: the mirror image is classified as well, and the probabilities averaged."),
]
DefenceOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A defence with its settings, such as purifier:eps=16, adp:sigma=0.1,seed=1 or feature-squeezing; may be "
        "repeated, in the order in which images pass them."
    ),
]
EpsOption = Annotated[
    int | None,
    typer.Option(
        parser=steps_of_grid("--eps"),
        metavar="INTEGER",
        help="Largest change of a value, in steps of 0..255; unless given, 16 to purify and 8 to attack.",
    ),
]
AlphaOption = Annotated[float, typer.Option(help="Call images adversarial up to this p-value.")]
_EVALUATED_DATASET = typer.Option(
    help="Its images: cifar10, fashion-mnist or a folder with a folder of images for each class.",
    autocompletion=among("fashion-mnist", "cifar10"),
)
EvaluatedDatasetOption = Annotated[str, _EVALUATED_DATASET]
OptionalEvaluatedDatasetOption = Annotated[str | None, _EVALUATED_DATASET]
AttacksOption = Annotated[
    str | None, typer.Option(help="Only these attacks, by name: a,b; by default rand, fgsm, bim, deepfool and others.")
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        help="Only these columns of the table, by name: a,b; where the protocol judges also attacks with options: "
        "bpda:steps=9."
    ),
]
HeadOption = Annotated[
    str | None,
    typer.Option(
        help="The network's last layer: logistic, softmax or pixelcnn++.",
        autocompletion=among("logistic", "softmax", "pixelcnn++"),
    ),
]
TrainImagesOption = Annotated[
    int, typer.Option(min=1, help="Training images that p-values compare with, where no shipped ones serve.")
]
LbfgsImagesOption = Annotated[int, typer.Option(min=0, help="Images purified by L-BFGS-B, too.")]
LbfgsStartsOption = Annotated[int, typer.Option(min=1, help="Its random starts per image; the paper's: 100.")]
NetworkOption = Annotated[
    list[str] | None,
    typer.Option(help="paper-cifar10, paper-fashion-mnist or shipped-NAME; may be repeated."),
]
_SEED = typer.Option(help="Of everything random: the same seed gives the same result.")
SeedOption = Annotated[int, _SEED]
OptionalSeedOption = Annotated[int | None, _SEED]

# the machine

DeviceOption = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda or cuda:N; auto is a GPU where there is one.", autocompletion=among("auto", "cpu", "cuda")
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_THREADS, help="Threads of torch and of the CPU engine; by default the usable processors."
    ),
]
_BATCH_SIZE = typer.Option(min=1, help="Images worked on at a time.")
BatchSizeOption = Annotated[int, _BATCH_SIZE]
OptionalBatchSizeOption = Annotated[int | None, _BATCH_SIZE]
EngineOption = Annotated[str, typer.Option(help="auto, or an engine that `pxfast info` lists.")]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="auto, fp32 or bf16; auto is the fastest here or, in training, what the preset says.",
        autocompletion=among("auto", "fp32", "bf16"),
    ),
]
RunnerOption = Annotated[
    str, typer.Option(help="Where the work is done: local, or ray.", autocompletion=among("local", "ray"))
]

# training

PresetOption = Annotated[
    str | None,
    typer.Option(
        help="Network and settings: full, unless given; small, for a CPU; paper, where there is one.",
        autocompletion=among("full", "small", "paper"),
    ),
]
_EPOCHS = typer.Option(help="Passes over the data, unless --budget is given.")
EpochsOption = Annotated[float, _EPOCHS]
OptionalEpochsOption = Annotated[float | None, _EPOCHS]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Training time instead of epochs, such as 45m or 2h; with compiling, but without the measurement at the "
        "end."
    ),
]
CheckpointIntervalOption = Annotated[
    str, typer.Option(help="Time between checkpoints, such as 45s or 3m; a killed run goes on from the last one.")
]
_LEARNING_RATE = typer.Option(help="The learning rate at its peak.")
LearningRateOption = Annotated[float, _LEARNING_RATE]
OptionalLearningRateOption = Annotated[float | None, _LEARNING_RATE]
WarmupOption = Annotated[int | None, typer.Option(help="Steps in which the learning rate rises.")]
EmaDecayOption = Annotated[float | None, typer.Option(help="Of the averaged weights.")]
GradientClipOption = Annotated[float | None, typer.Option(help="Largest norm of the gradient; 0: any.")]
OptionalFlipsOption = Annotated[
    bool | None, typer.Option("--flips/--no-flips", help="Flip every second image left to right, or none.")
]
_COMPILE = typer.Option(
    "--compile/--no-compile", help="Use torch.compile, which pays in long runs; the preset small decides by itself."
)
CompileOption = Annotated[bool, _COMPILE]
OptionalCompileOption = Annotated[bool | None, _COMPILE]
StartOption = Annotated[
    str | None,
    typer.Option(help="A network whose weights to begin with: a shipped one's name, or a file."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")]

# what is said

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress and no notes.")]


def parse_budget(text: str, what: str = "budget") -> float:
    """'90s', '45m', '2h' or '1h30m' in seconds. ValueError for anything else, by the name of ``what`` it is."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if not text or match is None:
        raise ValueError(f"{what} must be a duration such as 45m, 2h or 1h30m, got {text!r}")
    hours, minutes, seconds = (float(number or 0) for number in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def parse_names(text: str | None) -> list[str] | None:
    """'a,b' as a list; None as None. Options stay with their name: 'a:b=1,c=2,d' has two.

    ValueError where no name is in it.
    """
    if text is None:
        return None
    names: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if names and "=" in part and ":" not in part.partition("=")[0]:
            names[-1] += f",{part}"
        else:
            names.append(part)
    if not names:
        raise ValueError(f"expected names such as a,b, got {text!r}")
    return names


def settled(precision: str) -> str | None:
    """A ``--precision`` to train or convert in: None for 'auto', which leaves it open.

    ValueError for an unknown one.
    """
    from ..base.checks import check_precision

    return None if check_precision(precision) == "auto" else precision


def changed(values: Any, **options: Any) -> Any:
    """A dataclass with the options that were given."""
    return dataclasses.replace(values, **{name: value for name, value in options.items() if value is not None})
