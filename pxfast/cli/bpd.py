"""``pxfast bpd``."""

from __future__ import annotations

from .options import (
    BatchSizeOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    SourceArgument,
    ThreadsOption,
)


def bpd(
    source: SourceArgument,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 32,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print bits/dim, a line per image, and their mean: the lower, the likelier."""
    from ..base.machine import parse_device
    from ..base.progress import progress_of
    from ..data.image_files import open_collection
    from ..data.images import to_grid
    from ..pixelcnn.likelihood import bits_per_dim
    from .machine import use_threads
    from .output import print_json

    use_threads(threads)
    place = parse_device(device)
    collection = open_collection(source)
    found: list[float] = []
    with progress_of(len(collection.names), shown=not quiet, leave=False) as progress:
        for batch in collection.batches(batch_size):
            grid, _ = to_grid(batch)
            found += bits_per_dim(grid.to(place), model=model).tolist()
            progress.reach(len(found))
    mean = sum(found) / len(found) if found else None
    if as_json:
        images = [{"name": name, "bits_per_dim": bits} for name, bits in zip(collection.names, found, strict=True)]
        print_json({"mean": mean, "images": images})
        return
    for name, bits in zip(collection.names, found, strict=True):
        print(f"{name}\t{bits:.4f}")
    print("mean\t-" if mean is None else f"mean\t{mean:.4f}")
