"""``pxfast convert``: weights that others have published, as pxfast's model files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .groups import add_command, command_group
from .options import ForceOption, HeadOption, JsonOption, PrecisionOption, settled

app: typer.Typer = command_group("Turn published weights into a model file.")


def openai_tf(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A TensorFlow checkpoint, such as params_cifar.ckpt.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model file to write.")],
    head: HeadOption = "pixelcnn++",
    image_size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="By default 32 32 with three channels, 28 28 with one."),
    ] = None,
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Convert OpenAI's PixelCNN++ or the PixelDefend authors'; needs TensorFlow, the package's extra 'convert'.

    --head is pixelcnn++ for OpenAI's weights and logistic for the PixelDefend authors'. --precision is that of the
    weights in the file, bf16 unless given.
    """
    import dataclasses

    import torch

    from ..pixelcnn.convert import convert_openai_tf
    from .output import print_json

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[settled(precision) or "bf16"]
    model = convert_openai_tf(
        checkpoint, out, head=head or "pixelcnn++", image_size=image_size, dtype=dtype, force=force
    )
    config = model.config
    if as_json:
        print_json({"network": dataclasses.asdict(config), "files": [out]})
        return
    print(
        f"{out}: filters {config.filters}, resnets {config.resnets}, {config.mixtures} logistics, "
        f"{config.channels} x {config.image_size[0]} x {config.image_size[1]}, {config.head} head"
    )


add_command(app, "openai-tf", openai_tf)
