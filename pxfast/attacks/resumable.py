"""Attacking a whole data set into a file, in parts that survive kill -9."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..base.checks import check_instance, check_path, is_number
from ..base.files import check_encodable, output_files, whole_file
from ..base.parts import Parts
from ..base.progress import progress_of
from ..data.image_files import write_npy
from ..defences.protocol import HidesNetworks
from ..tensors.safetensors import metadata_json, read_safetensors
from .attack import Attack
from .result import COSTS, STAGES, AttackResult, join

PART_FORMAT = "pxfast-attack-part"
LIBRARIES = ("pxfast", "torch", "numpy", "scipy", "foolbox", "pyautoattack")


def labels_path(out: str | os.PathLike[str]) -> Path:
    """Where the labels of a file of attacked images go: OUT.npy has them in OUT.labels.npy."""
    return Path(out).with_suffix(".labels.npy")


def attack_to_file(
    attack: Attack,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    out: str | os.PathLike[str],
    *,
    eps: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> AttackResult:
    """Attack images, write them to ``out`` (.npy, uint8 (N, C, H, W)) and their labels beside it, and return both.

    Of floating images the file has the values 0..255, and the result is floating. Arguments are those of
    :meth:`Attack.run`. While this runs, every finished block of images is kept in the folder OUT.npy.parts, with
    everything that they depend on; a killed run that is started again takes them from there. They are removed once both files are written; a run that was killed in between is finished by the next one.
    Raises FileExistsError when ``out`` or its labels exist, ValueError for another suffix or when the parts are of
    another run (with ``force`` they and the files are replaced), BlockingIOError where another process writes ``out``,
    and what the attack raises.
    """
    check_instance("attack", attack, Attack)
    out = check_path("out", out)
    if out.suffix.lower() != ".npy":
        raise ValueError(f"{out}: attacked images are written to a file with the suffix .npy")
    check_encodable(out)
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"no such folder: {out.absolute().parent}")
    if not len(images):
        raise ValueError("expected at least one image")
    attack.check_eps(eps)
    outputs = [labels_path(out), out]
    parts = Parts(out, describe(attack, classifier, images, labels, eps, seed))
    with output_files(*outputs, force=force or parts.published(outputs)) as temporaries:
        parts.open(force=force)
        results = []
        try:
            with progress_of(len(images), shown=progress) as shown:
                for start in range(0, len(images), attack.block):
                    part = parts.folder / f"{start:08d}.safetensors"
                    if not part.exists():
                        chosen = slice(start, start + attack.block)
                        given = None if labels is None else labels[chosen]
                        write_part(attack.run(classifier, images[chosen], given, eps, seed=seed), part)
                    results.append(read_part(part))
                    shown.advance(len(results[-1].images))
        except BaseException:
            if not any(parts.folder.glob("*.safetensors")):  # a wrong request leaves nothing behind
                parts.remove()
            raise
        joined = join(results)
        known = torch.full((len(images),), -1) if labels is None else labels
        write_npy(known.cpu().long().numpy(), temporaries[0])
        write_npy(joined.images.cpu().numpy(), temporaries[1])
        parts.promise(temporaries)
    parts.remove()
    return joined


def describe(
    attack: Attack,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    eps: int | None,
    seed: int,
) -> dict[str, Any]:
    """Everything that attacked images depend on, JSON-able."""
    weights = hashlib.sha256(repr(classifier).encode())
    for network in (classifier, *hidden_networks(classifier, tuple(images.shape[1:]))):
        for name, value in network.state_dict().items():
            values = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            weights.update(name.encode() + values.tobytes())
    data = hashlib.sha256(images.cpu().contiguous().numpy().tobytes())
    data.update(b"none" if labels is None else labels.cpu().long().contiguous().numpy().tobytes())
    return {
        "attack": attack.name,
        "eps": eps,
        "seed": seed,
        "options": attack.options,
        "classifier": weights.hexdigest(),
        "images": [*images.shape, data.hexdigest()],
        "device": images.device.type,
        "libraries": library_versions(),
    }


def hidden_networks(classifier: nn.Module, image_shape: tuple[int, ...]) -> list[nn.Module]:
    """Networks that the classifier's defences hold without their being submodules, such as a purifier's model.

    image_shape: (C, H, W), for purifiers that pick the shipped model of that shape.
    """
    found = []
    for module in classifier.modules():
        if isinstance(module, HidesNetworks):
            found += module.hidden_networks(image_shape)
        else:
            found += [value for value in vars(module).values() if isinstance(value, nn.Module)]
    return found


def write_part(result: AttackResult, path: Path) -> None:
    tensors = {name: getattr(result, name) for name in ("images", *STAGES, *COSTS)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": PART_FORMAT, "seconds": repr(result.seconds)})


def read_part(path: Path) -> AttackResult:
    """A finished part, on the CPU. ValueError names the file when it is none."""
    tensors, notes = read_safetensors(path, PART_FORMAT)
    needed, seconds = {"images", *STAGES}, metadata_json(notes, "seconds", path)
    images = tensors.get("images", torch.zeros(()))
    good = needed <= tensors.keys() <= needed | set(COSTS) and images.dtype == torch.uint8 and images.ndim == 4
    for name in tensors.keys() - {"images"}:
        dtype = torch.bool if name in STAGES else torch.int64
        good = good and tensors[name].dtype == dtype and tuple(tensors[name].shape) == images.shape[:1]
    if not good or not is_number(seconds):
        raise ValueError(f"{path} is no part of an attack: remove it, or the folder of parts that it is in")
    return AttackResult(**tensors, seconds=float(seconds))


def library_versions() -> dict[str, str | None]:
    """The versions of the libraries that attacks call, by name; None of one that is not installed."""
    return {name: _version(name) for name in LIBRARIES}


@functools.cache
def _version(library: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(library)
    return None
