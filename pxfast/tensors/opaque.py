"""Purifiers that torch.compile takes as one operation each, which it neither looks into nor breaks its graph at."""

from __future__ import annotations

import inspect
import itertools
import secrets
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .seeds import derived_seeds, image_seeds
from .straight_through import refuse

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

SCHEMA = "(Tensor images, Tensor? seeds, int handle, str backward) -> Tensor"


class Opaque(nn.Module):
    """A purifier with the operator ``pxfast::purify``, for use where ``torch.compiler.is_compiling()``.

    A compiled graph holds a number, ``handle``, by which the operator finds the module, with the settings that it has
    when the graph runs. A copy, unpickled ones included, has a number of its own. A program of torch.export outlives
    the process that the number means something in, so that making one raises RuntimeError.

    without_effect: the attributes that no result depends on.
    """

    handle: int
    without_effect: ClassVar[frozenset[str]] = frozenset({"handle"})

    def __init__(self) -> None:
        super().__init__()
        self.eval()  # it does the same in training, and what judges classifiers asks for eval mode
        self._take_handle()

    def _take_handle(self) -> None:
        self.handle = next(_numbers)
        _by_number[self.handle] = self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._take_handle()

    def _purified(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """The purified images, a new tensor of the shape, dtype and device of ``images``; without a gradient.

        images: whatever the module takes. seeds: one an image where the module is random, otherwise None.
        """
        raise NotImplementedError

    def _as_operator(self, images: Tensor, seeds: Tensor | None, backward: str) -> Tensor:
        """:meth:`_purified` as an operator with the gradient that ``backward`` says, 'straight-through' or 'error'."""
        found: Tensor = torch.ops.pxfast.purify(images, seeds, self.handle, backward)
        return found


def _handles() -> Iterator[int]:
    """Numbers of modules. Small ones, which torch finds compiled graphs by in its cache on disk."""
    if hasattr(torch.compiler, "is_exporting"):
        return itertools.count()
    # torch 2.6 does not tell export: a program of it must not find a module of another process
    return iter(lambda: secrets.randbits(62), None)


_numbers = _handles()
_by_number: weakref.WeakValueDictionary[int, Opaque] = weakref.WeakValueDictionary()


def _module(handle: int) -> Opaque:
    """The module of this number. RuntimeError says why there may be none."""
    found = _by_number.get(handle)
    if found is None:
        raise RuntimeError(
            "this graph asks for a purifier that this process does not have: it was deleted, or the graph was made in "
            "another process. Compile the network that holds the purifier here, by torch.compile"
        )
    return found


def _refuse_export() -> None:
    """RuntimeError while torch.export makes a program."""
    # in the operator's shape, not where it is called: the flag is the process's, and other threads compute meanwhile
    if hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting():
        raise RuntimeError(
            "torch.export can't take a purifier: a program holds neither its density model nor its decoding. Export "
            "the classifier alone, and purify its images before it; or use torch.compile"
        )


def _operator(name: str, schema: str) -> Callable[[Callable[..., Tensor]], CustomOpDef]:
    """A decorator: the function as the operator ``pxfast::name``, which no CUDA graph captures.

    The operators look at values on the host, which a captured graph would do once for all replays.
    """
    known = inspect.signature(torch.library.custom_op).parameters
    if "tags" in known and hasattr(torch.Tag, "cudagraph_unsafe"):  # torch 2.6 has neither
        tags = (torch.Tag.cudagraph_unsafe,)
        return torch.library.custom_op(f"pxfast::{name}", mutates_args=(), schema=schema, tags=tags)
    return torch.library.custom_op(f"pxfast::{name}", mutates_args=(), schema=schema)


@_operator("purify", SCHEMA)
def _purify(images: Tensor, seeds: Tensor | None, handle: int, backward: str) -> Tensor:
    return _module(handle)._purified(images, None if seeds is None else seeds.tolist()).contiguous()


@_purify.register_fake
def _(images: Tensor, seeds: Tensor | None, handle: int, backward: str) -> Tensor:
    _refuse_export()
    return images.new_empty(images.shape)


@_operator("refuse_gradient", "(Tensor gradient) -> Tensor")
def _refuse_gradient(gradient: Tensor) -> Tensor:
    refuse()


@_refuse_gradient.register_fake
def _(gradient: Tensor) -> Tensor:
    return torch.empty_like(gradient)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None, int, str], output: Tensor) -> None:
    ctx.backward_is = inputs[3]


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    if ctx.backward_is == "error":  # the operator raises when it runs, not when the graph is made
        gradient = torch.ops.pxfast.refuse_gradient(gradient)
    return gradient, None, None, None


_purify.register_autograd(_gradient, setup_context=_keep)


@_operator("image_seeds", "(Tensor images, int seed) -> Tensor")
def _image_seeds(images: Tensor, seed: int) -> Tensor:
    return torch.tensor(image_seeds(images, seed), dtype=torch.int64, device=images.device)


@_operator("derived_seeds", "(Tensor seeds, int number) -> Tensor")
def _derived_seeds(seeds: Tensor, number: int) -> Tensor:
    return torch.tensor(derived_seeds(seeds.tolist(), number), dtype=torch.int64, device=seeds.device)


@_image_seeds.register_fake
def _(images: Tensor, seed: int) -> Tensor:
    return images.new_empty(images.shape[0], dtype=torch.int64)


@_derived_seeds.register_fake
def _(seeds: Tensor, number: int) -> Tensor:
    return torch.empty_like(seeds)


def compiled_image_seeds(images: Tensor, seed: int) -> Tensor:
    """:func:`pxfast.tensors.seeds.image_seeds` as an operator: int64 (N,) on the images' device."""
    found: Tensor = torch.ops.pxfast.image_seeds(images.detach(), seed)
    return found


def compiled_derived_seeds(seeds: Tensor, number: int) -> Tensor:
    """:func:`pxfast.tensors.seeds.derived_seeds` as an operator: int64 (N,) for int64 (N,)."""
    found: Tensor = torch.ops.pxfast.derived_seeds(seeds, number)
    return found
