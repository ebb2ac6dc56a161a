"""Attacking a whole data set into a file, in parts that survive kill -9."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..base.checks import check_flag, check_instance, check_path, check_progress, is_number
from ..base.files import check_encodable, check_outputs, output_files, whole_file
from ..base.parts import Parts, has_parts
from ..base.progress import reporting
from ..classifiers.contract import Labels, class_labels
from ..data.image_files import numbered, write_npy, write_png
from ..data.image_writers import check_one_png, check_output, check_output_suffix, folder_writer, png_folder
from ..defences.weights import classifier_key, network_key
from ..tensors.safetensors import metadata_json, read_safetensors
from .attack import Attack, attackable
from .result import COSTS, STAGES, AttackResult, join

KINDS = (".npy", ".png", "")
PART_FORMAT = "pxfast-attack-part"
LIBRARIES = ("pxfast", "torch", "numpy", "scipy", "foolbox", "pyautoattack")


LABELS = "labels.npy"  # in a folder of attacked images


def labels_path(out: str | os.PathLike[str]) -> Path:
    """Where the labels of attacked images go: NAME.npy has them in NAME.labels.npy, a folder in its own labels.npy."""
    return Path(out) / LABELS if is_folder(Path(out)) else Path(out).with_suffix(".labels.npy")


def is_folder(out: Path) -> bool:
    """Whether attacked images go to ``out`` as a folder of PNG files, not as one file."""
    return check_output_suffix(out, *KINDS) == ""


def check_attack_output(out: str | os.PathLike[str], *others: Path, force: bool) -> Path:
    """The path itself, unless :func:`attack_to_file` is sure to refuse it: with what that raises, before any work.

    others: files that are to appear beside it. An output that exists is left for later where there are parts of a run
    that may have published it.
    """
    out = check_path("out", out)
    check_encodable(out)
    folder = check_output(out, *KINDS) == ""
    force = has_parts(out) or force
    files = [*others] if folder else [out, labels_path(out), *others]
    check_outputs(*files, folder=out if folder else None, force=force)
    return out


def attack_to_file(
    attack: Attack,
    classifier: nn.Module,
    images: Tensor,
    labels: Labels | None,
    out: str | os.PathLike[str],
    *,
    eps: int | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    beside: Mapping[Path, Callable[[AttackResult, Path], object]] | None = None,
    force: bool = False,
    progress: bool | Callable[[int], None] = False,
) -> AttackResult:
    """Attack images, write them and their labels, and return both.

    out: a file NAME.npy, uint8 (N, C, H, W), whose labels go to NAME.labels.npy; a .png of a single image, whose label
    does so too; or, without a suffix, a folder of PNG files 00000.png, 00001.png and so on, whose labels are in its
    labels.npy, in this order. Of floating images the files have the values 0..255, and the result is floating.
    names: what the names of such PNG files add to their numbers, one for each image. beside: other files that appear
    together with these, each with a function that writes it, of the result on the grid and a temporary path. The other
    arguments are those of :meth:`Attack.run`.

    While this runs, images are kept in the folder OUT.parts as they are finished, with everything that they depend on;
    a killed run that is started again takes them from there. They are removed once all is written; a run that was
    killed in between is finished by the next one.
    Raises FileExistsError when ``out`` or its labels exist, ValueError for another suffix or when the parts are of
    another run (with ``force`` they and the files are replaced), BlockingIOError where another process writes ``out``,
    and what the attack raises.
    """
    check_instance("attack", attack, Attack)
    check_progress(progress)
    out = check_attack_output(out, *(beside or {}), force=check_flag("force", force))
    attack.check_installed()
    attack.check_eps(eps)
    grid, form = attackable(classifier, images, clip=False)
    if not len(grid):
        raise ValueError("expected at least one image")
    kind = check_output_suffix(out, *KINDS)
    check_one_png(out, kind, len(grid))
    if names is not None and len(names) != len(grid):
        raise ValueError(f"expected {len(grid)} names, one an image, got {len(names)}")
    labels = None if labels is None else class_labels(labels, len(grid))
    others = dict(beside or {})
    outputs = [*([labels_path(out)] if kind else []), out, *others]
    parts = Parts(out, describe(attack, classifier, grid, labels, eps, seed))
    with published(out, kind, list(others), force=force or parts.published(outputs)) as temporary:
        parts.open(force=force)
        try:
            kept = [read_part(path) for path in sorted(parts.folder.glob("*.safetensors"))]
            left = places_left(parts.folder, [places for places, _ in kept], len(grid))
            with reporting(len(grid), progress, done=len(grid) - len(left)) as report:

                def take(chosen: Tensor, result: AttackResult) -> None:
                    path = parts.folder / f"{sum(len(places) for places, _ in kept):08d}.safetensors"
                    write_part(left[chosen], result, path)
                    kept.append(read_part(path))
                    report(sum(len(places) for places, _ in kept))

                if len(left):
                    given = None if labels is None else labels[left]
                    attack.in_pieces(take, classifier, grid[left.to(grid.device)], given, eps, seed=seed)
        except BaseException:
            if not any(parts.folder.glob("*.safetensors")):  # a wrong request leaves nothing behind
                parts.remove()
            raise
        places = torch.cat([places for places, _ in kept])
        joined = join([result for _, result in kept]).ordered(places)
        known = torch.full((len(grid),), -1) if labels is None else labels
        write_npy(known.numpy(), temporary.labels)
        if kind == ".npy":
            write_npy(joined.images.cpu().numpy(), temporary.images)
        elif kind == ".png":
            write_png(joined.images[0], temporary.images)
        else:
            folder_writer(temporary.images, numbered(len(grid), names))(joined.images)
        for write, path in zip(others.values(), temporary.others, strict=True):
            write(joined, path)
        parts.promise([*([temporary.labels] if kind else []), temporary.images, *temporary.others])
    parts.remove()
    return dataclasses.replace(joined, images=form.images(joined.images))


class Temporary(NamedTuple):
    """Where the images, the labels and other files are written before they are published."""

    images: Path
    labels: Path
    others: list[Path]


@contextlib.contextmanager
def published(out: Path, kind: str, others: Sequence[Path], *, force: bool) -> Iterator[Temporary]:
    """Temporary paths of the images, of their labels and of other files, all of which appear together."""
    if kind:
        with output_files(labels_path(out), out, *others, force=force) as (labels, images, *rest):
            yield Temporary(images, labels, rest)
    else:
        with png_folder(out, *others, force=force, beside=[LABELS]) as (folder, rest):
            yield Temporary(folder, folder / LABELS, rest)


def describe(
    attack: Attack,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    eps: int | None,
    seed: int,
) -> dict[str, Any]:
    """Everything that attacked images depend on, JSON-able. labels: int64 (N,), on the CPU."""
    image_shape = tuple(images.shape[1:])
    data = hashlib.sha256(images.cpu().contiguous().numpy().tobytes())
    data.update(b"none" if labels is None else labels.contiguous().numpy().tobytes())
    return {
        "attack": attack.name,
        "eps": eps,
        "seed": seed,
        "options": attack.options,
        "classifier": classifier_key(classifier, image_shape),
        "networks": [network_key(network) for network in attack.hidden_networks(image_shape)],
        "images": [*images.shape, data.hexdigest()],
        "device": images.device.type,
        "libraries": library_versions(),
    }


def write_part(places: Tensor, result: AttackResult, path: Path) -> None:
    """Keep images that are finished. places: theirs among all images, int64 (N,)."""
    tensors = {"places": places, **{name: getattr(result, name) for name in ("images", *STAGES, *COSTS)}}
    # copies: some of them may be one tensor, which the format refuses
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items() if tensor is not None}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": PART_FORMAT, "seconds": repr(result.seconds)})


def read_part(path: Path) -> tuple[Tensor, AttackResult]:
    """The places of finished images and their result, on the CPU. ValueError names the file when it is none."""
    tensors, notes = read_safetensors(path, PART_FORMAT)
    needed, seconds = {"places", "images", *STAGES}, metadata_json(notes, "seconds", path)
    images = tensors.get("images", torch.zeros(()))
    good = needed <= tensors.keys() <= needed | set(COSTS) and images.dtype == torch.uint8 and images.ndim == 4
    for name in tensors.keys() - {"images"}:
        dtype = torch.bool if name in STAGES else torch.int64
        good = good and tensors[name].dtype == dtype and tuple(tensors[name].shape) == images.shape[:1]
    if not good or not is_number(seconds):
        raise ValueError(f"{path} is no part of an attack: remove it, or the folder of parts that it is in")
    return tensors.pop("places"), AttackResult(**tensors, seconds=float(seconds))


def places_left(folder: Path, kept: Sequence[Tensor], count: int) -> Tensor:
    """Which of so many images are not among those that are kept: int64, in their order. ValueError for wrong places."""
    places = torch.cat([torch.zeros(0, dtype=torch.int64), *kept])
    within = bool(((places >= 0) & (places < count)).all())
    if not within or len(places.unique()) < len(places):
        raise ValueError(f"{folder} holds parts that are not of {count} images: remove it")
    left = torch.ones(count, dtype=torch.bool)
    left[places] = False
    return left.nonzero()[:, 0]


def library_versions() -> dict[str, str | None]:
    """The versions of the libraries that attacks call, by name; None of one that is not installed."""
    return {name: _version(name) for name in LIBRARIES}


@functools.cache
def _version(library: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(library)
    return None
