"""``pxfast figures``: the paper's figures, from one's own models and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ForceOption, ModelOption

app = typer.Typer(no_args_is_help=True, help="Draw the paper's figures.")


@app.callback()
def root() -> None:
    """Draw the paper's figures."""


@app.command()
def density(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="fashion-mnist, cifar10 or a folder of images.")
    ] = "fashion-mnist",
    root: Annotated[Path | None, typer.Option(help="torchvision's root folder; nothing is downloaded.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for the pictures; made when it isn't there.")] = Path("figures"),
    images: Annotated[int, typer.Option(min=1, help="Test images measured.")] = 200,
    train_images: Annotated[
        int, typer.Option(min=1, help="Training images that p-values compare with, where none are shipped.")
    ] = 1000,
    model: ModelOption = None,
    classifier: Annotated[
        str | None, typer.Option(help="A shipped classifier's name or a file; by default the data set's shipped one.")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated; by default rand, fgsm, bim, deepfool, or rand without a classifier."),
    ] = None,
    attack_eps: Annotated[int | None, typer.Option(help="By default the paper's: 25, and 8 for cifar10.")] = None,
    purify_eps: Annotated[int | None, typer.Option(help="By default the paper's: 32, and 16 for cifar10.")] = None,
    lbfgs_images: Annotated[int, typer.Option(min=0, help="Images purified by L-BFGS-B, too.")] = 10,
    lbfgs_starts: Annotated[int, typer.Option(min=1, help="Its random starts per image; the paper's: 100.")] = 1,
    seed: int = 0,
    force: ForceOption = False,
) -> None:
    """Samples, bits/dim, p-values, ROC curves and L-BFGS-B against greedy decoding, as PNG and SVG."""
    from ..evaluation.figures import density_figures

    written = density_figures(
        dataset,
        root,
        out,
        force=force,
        images=images,
        train_images=train_images,
        model=model,
        classifier=classifier,
        attacks=attack or None,
        attack_eps=attack_eps,
        purify_eps=purify_eps,
        lbfgs_images=lbfgs_images,
        lbfgs_starts=lbfgs_starts,
        seed=seed,
        progress=True,
    )
    print("\n".join(str(path) for path in written))
