"""``pxfast bpd``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import (
    BatchSizeOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    ModelOption,
    OptionalOutOption,
    QuietOption,
    SourceArgument,
    ThreadsOption,
)

if TYPE_CHECKING:
    from torch import Tensor

    from .rows import Row


def bpd(
    source: SourceArgument,
    model: ModelOption = None,
    out: OptionalOutOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 32,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Print bits/dim, a line per image, and their mean: the lower, the likelier.

    OUT is a .tsv file for the lines, or a .json file of what --json prints; a killed run of it goes on.
    """
    from ..base.machine import parse_device
    from ..data.image_files import check_collection, open_collection
    from ..pixelcnn.likelihood import bits_per_dim
    from .machine import use_threads
    from .output import print_json
    from .rows import check_rows_output, describe, in_line, rows_to

    use_threads(threads)
    place = parse_device(device)
    check_rows_output(out, force=force)
    collection = open_collection(source)
    check_collection(collection)

    def measure(grid: Tensor) -> list[Row]:
        return [[bits] for bits in bits_per_dim(grid.to(place), model=model).tolist()]

    settings = {"command": "bpd", "batch_size": batch_size, "device": place.type}
    with rows_to(out, lambda: describe([source], [collection], model, **settings), force=force) as rows:
        found = [bits for (bits,) in rows.of([collection], measure, batch_size=batch_size, progress=not quiet)]
        mean = sum(found) / len(found) if found else None
        images = [{"name": name, "bits_per_dim": bits} for name, bits in zip(collection.names, found, strict=True)]
        lines = [f"{in_line(name)}\t{bits:.4f}" for name, bits in zip(collection.names, found, strict=True)]
        document = {"mean": mean, "images": images}
        rows.write(lines, document)
    if as_json:
        print_json(document if out is None else {**document, "files": [out]})
        return
    for line in lines if out is None else ():
        print(line)
    print("mean\t-" if mean is None else f"mean\t{mean:.4f}")
