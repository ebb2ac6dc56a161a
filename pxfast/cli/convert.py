"""``pxfast convert``: weights that others have published, as pxfast's model files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ForceOption

app = typer.Typer(no_args_is_help=True, help="Turn published weights into a model file.")


@app.callback()
def root() -> None:
    """Turn published weights into a model file."""


@app.command("openai-tf")
def openai_tf(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A TensorFlow checkpoint, such as params_cifar.ckpt.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model file to write.")],
    head: Annotated[
        str, typer.Option(help="pixelcnn++ for OpenAI's weights, logistic for the PixelDefend authors'.")
    ] = "pixelcnn++",
    image_size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="By default 32 32 with three channels, 28 28 with one."),
    ] = None,
    precision: Annotated[str, typer.Option(help="bf16 or fp32, of the weights in the file.")] = "bf16",
    force: ForceOption = False,
) -> None:
    """Convert OpenAI's PixelCNN++ or the PixelDefend authors'; needs TensorFlow, the package's extra 'convert'."""
    import torch

    from ..pixelcnn.convert import convert_openai_tf

    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if precision not in dtypes:
        raise ValueError(f"precision must be bf16 or fp32, got {precision!r}")
    model = convert_openai_tf(checkpoint, out, head=head, image_size=image_size, dtype=dtypes[precision], force=force)
    config = model.config
    print(
        f"{out}: filters {config.filters}, resnets {config.resnets}, {config.mixtures} logistics, "
        f"{config.channels} x {config.image_size[0]} x {config.image_size[1]}, {config.head} head"
    )
