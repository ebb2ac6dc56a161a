"""The command line: ``pxfast purify``, ``bpd``, ``info``, ``train``, ``train-classifier``, ``bench`` and ``demo``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError
from tqdm import tqdm

from . import __version__
from .cli_options import EngineOption, ForceOption, JsonOption, ModelOption, RootOption, parse_budget
from .cli_train_classifier import train_classifier

BATCH_SIZE = 256  # images read, purified and written at a time

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=False)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"pxfast {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Fast PixelDefend: purify images with a PixelCNN++ and compiled, cached decoding."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def purify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of images, a .npy, a .pt or an image file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Written whole, as the same kind; images as PNG.")],
    eps: Annotated[int, typer.Option(help="Largest change of a value, in steps of 0..255.")] = 16,
    model: ModelOption = None,
    engine: EngineOption = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    force: ForceOption = False,
) -> None:
    """Move images to the likeliest ones within ±eps."""
    from .image_files import open_collection
    from .purify import Purifier

    collection = open_collection(source)
    purifier = Purifier(eps, model=model, engine=engine, precision=precision)
    with (
        collection.writer(out, force=force) as write,
        tqdm(total=len(collection.names), unit="image") as bar,
    ):
        finished = 0
        for batch in collection.batches(BATCH_SIZE):

            def report(count: int, before: int = finished) -> None:
                bar.update(before + count - bar.n)

            purifier.progress = report
            write(purifier(batch))
            finished += len(batch)
            bar.update(finished - bar.n)


@app.command()
def bpd(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of images, a .npy, a .pt or an image file.")],
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print bits/dim, a line per image, and their mean: the lower, the likelier."""
    from .density import bits_per_dim
    from .image_files import open_collection

    collection = open_collection(source)
    found: list[float] = []
    with tqdm(total=len(collection.names), unit="image", leave=False) as bar:
        for batch in collection.batches(BATCH_SIZE // 8):  # so that the bar moves
            found += bits_per_dim(batch, model=model).tolist()
            bar.update(len(batch))
    mean = sum(found) / len(found) if found else None
    if as_json:
        images = [{"name": name, "bits_per_dim": bits} for name, bits in zip(collection.names, found, strict=True)]
        print(json.dumps({"mean": mean, "images": images}))
        return
    for name, bits in zip(collection.names, found, strict=True):
        print(f"{name}\t{bits:.4f}")
    print("mean\t-" if mean is None else f"mean\t{mean:.4f}")


@app.command()
def info(as_json: JsonOption = False) -> None:
    """Print versions, engines, CPU features and shipped models."""
    from .info import collect, describe

    facts = collect()
    print(json.dumps(facts, indent=2) if as_json else describe(facts))


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="fashion-mnist or cifar10.")],
    root: RootOption,
    out: Annotated[Path, typer.Option(help="The model file; its checkpoint is kept beside it.")],
    filters: Annotated[
        int | None,
        typer.Option(help="Features per stream; by default the paper's: 40, and 160 for cifar10."),
    ] = None,
    resnets: Annotated[int, typer.Option(help="Gated layers per level.")] = 5,
    head: Annotated[str, typer.Option(help="logistic, softmax or pixelcnn++.")] = "logistic",
    epochs: Annotated[float, typer.Option(help="Passes over the data, unless --budget is given.")] = 10.0,
    budget: Annotated[
        str | None,
        typer.Option(help="Training time instead of epochs, such as 45m or 2h."),
    ] = None,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    dropout: float = 0.0,
    seed: int = 0,
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = False,
    start: Annotated[
        Path | None, typer.Option(help="A model file whose weights to begin with, in place of random ones.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    force: ForceOption = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of torch."),
    ] = None,
) -> None:
    """Train a model on a data set; killed runs go on with --resume."""
    import torch

    from .data import DATASETS, load_dataset
    from .pixelcnn import PixelCNNConfig
    from .training import TrainingSettings, record_bits_per_dim
    from .training import train as train_model
    from .weights import load_model

    if dataset not in DATASETS:
        raise ValueError(f"unknown data set {dataset!r}; known: {', '.join(sorted(DATASETS))}")
    channels, *size = DATASETS[dataset]
    if filters is None:
        filters = 160 if dataset == "cifar10" else 40
    config = PixelCNNConfig((size[0], size[1]), channels, filters, resnets, head=head, dropout=dropout)
    settings = TrainingSettings(
        batch_size=batch_size,
        epochs=epochs,
        budget=None if budget is None else parse_budget(budget),
        learning_rate=learning_rate,
        seed=seed,
        precision=precision,
        compile=compiled,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    images, _ = load_dataset(dataset, root, train=True)
    held_out, _ = load_dataset(dataset, root, train=False)
    train_model(
        config,
        images,
        out,
        settings=settings,
        validation=held_out[:256],
        start=None if start is None else load_model(start),
        resume=resume,
        force=force,
    )
    print(f"{record_bits_per_dim(out, held_out, progress=True):.4f} bits/dim on the test set")


app.command()(train_classifier)


@app.command()
def bench(
    network: Annotated[
        list[str] | None,
        typer.Option(help="paper-cifar10, paper-fashion-mnist or shipped-NAME; may be repeated. Default: all."),
    ] = None,
    precision: Annotated[list[str] | None, typer.Option(help="bf16 or fp32; may be repeated. Default: both.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images decoded at once.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Decodes per row; the median counts.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")] = False,
) -> None:
    """Measure images/s here, beside what the machine's own matrix products would allow."""
    import dataclasses

    from . import benchmark

    rows = []
    for name in network or benchmark.NETWORKS:
        for each in precision or ("bf16", "fp32"):
            row = benchmark.measure(name, precision=each, batch=batch, rounds=rounds)
            rows.append(row)
            if as_json:
                print(json.dumps(dataclasses.asdict(row)), flush=True)
    if not as_json:
        print(benchmark.table(rows))


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="The picture to write; by default pxfast-demo.png here."),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Purify attacked images that are shipped with the package, and draw the result."""
    from .demo import run

    run(out, force=force)


def main() -> None:
    """Run the command line. Errors are one line and exit code 2, Ctrl-C is 130."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own errors, whose base class it does not export
        expected = OSError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError, SafetensorError
        if usage is None and not isinstance(error, expected):
            raise
        message = usage() if usage is not None else str(error)
        print(f"error: {' '.join(message.split()) or type(error).__name__}", file=sys.stderr)
        code = 2
    if code == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
