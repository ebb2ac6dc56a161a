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
from .cli_attack import attack
from .cli_convert import app as convert_app
from .cli_detect import detect
from .cli_evaluate import app as evaluate_app
from .cli_figures import app as figures_app
from .cli_options import EngineOption, ForceOption, JsonOption, ModelOption
from .cli_report import report
from .cli_sample import sample
from .cli_train import train
from .cli_train_adp import train_adp
from .cli_train_classifier import train_classifier
from .cli_tune import tune
from .memory import keep_freed_memory

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
    eps: Annotated[int | None, typer.Option(help="Largest change of a value, in steps of 0..255. Default: 16.")] = None,
    method: Annotated[str, typer.Option(help="pixeldefend; or adp: noise, then steps along a score network.")] = (
        "pixeldefend"
    ),
    adaptive: Annotated[
        str | None,
        typer.Option(help="'image' or 'sub-pixel': spare the images, or the sub-pixels, that are likely already."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="What counts as likely, in bits/dim or bits; by default the paper's 1.8 or 3.2, or 3."),
    ] = None,
    model: ModelOption = None,
    engine: EngineOption = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    sigma: Annotated[
        float | None, typer.Option(help="adp: the noise's deviation, on images in [0, 1]. Default: 0.25.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="adp: at most so many. Default: 10.")] = None,
    seed: Annotated[int | None, typer.Option(help="adp: of the noise. Default: 0.")] = None,
    force: ForceOption = False,
) -> None:
    """Move images to the likeliest ones within ±eps."""
    from .image_files import open_collection
    from .purify import purifier_for

    collection = open_collection(source)
    purifier = purifier_for(
        method,
        eps=eps,
        adaptive=adaptive,
        threshold=threshold,
        model=model,
        engine=engine,
        precision=precision,
        sigma=sigma,
        steps=steps,
        seed=seed,
    )
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


app.command()(train)
app.command()(train_classifier)
app.command()(train_adp)
app.command()(attack)
app.command()(report)
app.command()(sample)
app.command()(detect)
app.command()(tune)
app.add_typer(convert_app, name="convert")
app.add_typer(figures_app, name="figures")
app.add_typer(evaluate_app, name="evaluate")


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
    keep_freed_memory()
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own errors, whose base class it does not export
        expected = (OSError, ImportError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError)
        if usage is None and not isinstance(error, (*expected, SafetensorError)):
            raise
        message = usage() if usage is not None else str(error)
        print(f"error: {' '.join(message.split()) or type(error).__name__}", file=sys.stderr)
        code = 2
    if code == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
