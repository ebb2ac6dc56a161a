"""Networks whose weights lie in the package: by name, by the path of a file, or by the shape of the images."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from .ambient import in_plain_torch
from .pretrained import HUB_NAME, WEIGHTS, Pretrained

Network = TypeVar("Network", bound=nn.Module)


class Shipped(Mapping[str, Path], Generic[Network]):
    """The shipped networks of one kind: names to their files in the package.

    what: what messages call such a network. kind: its class; an instance's ``config`` has ``channels`` and
    ``image_size``. files: names of files by names of networks; of several that take images of one shape the first is
    that shape's. read: a network from a file. read_config: its configuration alone.
    """

    def __init__(
        self,
        what: str,
        kind: type[Network],
        files: dict[str, str],
        read: Callable[[Path], Network],
        read_config: Callable[[Path], Any],
    ) -> None:
        self.what = what
        self.kind = kind
        self.read: Callable[[Path], Network] = in_plain_torch(read)  # what is kept serves every caller
        self.read_config = read_config
        assets = Path(str(resources.files("pxfast") / "assets"))
        self.files: dict[str, Path] = {name: assets / file for name, file in files.items()}
        self._kept = functools.cache(lambda name: self.read(self.files[name]))
        self._by_shape = functools.cache(self._find_shapes)

    def __getitem__(self, name: str) -> Path:
        return self.files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, name_or_path: str | os.PathLike[str]) -> Path:
        """The file of a shipped network's name, or of a path; in a folder, its ``model.safetensors``.

        ValueError lists the known names.
        """
        if not isinstance(name_or_path, (str, os.PathLike)):
            raise TypeError(f"expected the name or the path of a {self.what}, got {type(name_or_path).__name__}")
        text = os.fspath(name_or_path)
        if text in self.files:
            return self.files[text]
        if os.path.isdir(text) and os.path.lexists(os.path.join(text, WEIGHTS)):
            return Path(text) / WEIGHTS
        if not os.path.exists(text) and HUB_NAME.fullmatch(text) and issubclass(self.kind, Pretrained):
            hint = f"one of the Hugging Face Hub is downloaded by {self.kind.__name__}.from_pretrained({text!r})"
            raise FileNotFoundError(f"no such file: {text}; {hint}")
        if os.path.exists(text) or os.sep in text or text.endswith(".safetensors"):
            return Path(text)
        known = ", ".join(sorted(self.files))
        raise ValueError(f"unknown {self.what} {text!r}; shipped: {known}; or pass a file's path")

    def load(self, name_or_path: str | os.PathLike[str]) -> Network:
        """A network of one's own, from a shipped name or a file. Raises what ``path`` and ``read`` raise."""
        return self.read(self.path(name_or_path))

    def resolve(self, network: Network | str | os.PathLike[str] | None) -> Network | None:
        """A network given by name or path, loaded; shipped ones only once. A network or None is returned as it is.

        TypeError for anything else.
        """
        if network is None or isinstance(network, self.kind):
            return network
        if isinstance(network, str) and network in self.files:
            return self._kept(network)
        if isinstance(network, (str, os.PathLike)):
            return self.load(network)
        raise TypeError(
            f"model must be a {self.kind.__name__}, a shipped {self.what}'s name, a path or None, "
            f"got {type(network).__name__}"
        )

    def name_for(self, image_shape: tuple[int, ...], option: str = "model") -> str:
        """The name of the shipped network for images of shape (C, H, W). ValueError where there is none.

        option: what the caller's callers pass a network of their own as.
        """
        by_shape = self._by_shape()
        if image_shape not in by_shape:
            known = ", ".join(f"{shape} ({name})" for shape, name in by_shape.items()) or "none"
            raise ValueError(
                f"no shipped {self.what} takes images of shape {image_shape}{turned(image_shape, by_shape)}; shipped: "
                f"{known}; pass {option}= (--model on the command line), a {self.kind.__name__} or the path of its "
                "file; pxfast train and train-adp make them from a folder of images"
            )
        return by_shape[image_shape]

    def for_images(self, network: Network | str | os.PathLike[str] | None, image_shape: tuple[int, ...]) -> Network:
        """The network for images of shape (C, H, W): the given one, or with None the shipped one of that shape.

        ValueError when the given one takes another shape, or when none is shipped for this one.
        """
        resolved, image_shape = self.resolve(network), tuple(image_shape)
        if resolved is None:
            return self._kept(self.name_for(image_shape))
        expected = _shape(resolved.config)
        if image_shape != expected:
            hint = turned(image_shape, [expected])
            raise ValueError(f"the {self.what} takes images of shape (C, H, W) = {expected}, got {image_shape}{hint}")
        return resolved

    def _find_shapes(self) -> dict[tuple[int, ...], str]:
        found: dict[tuple[int, ...], str] = {}
        for name, path in self.files.items():
            if path.is_file():
                found.setdefault(_shape(self.read_config(path)), name)
        return found


def turned(image_shape: tuple[int, ...], known: Iterable[tuple[int, ...]]) -> str:
    """What an error adds where an image's axes (H, W, C) in the order (C, H, W) are of a known shape, else nothing."""
    *sides, channels = image_shape
    return ", which seems to be (H, W, C): (C, H, W) is expected" if (channels, *sides) in known else ""


def _shape(config: Any) -> tuple[int, ...]:
    return (config.channels, *config.image_size)
