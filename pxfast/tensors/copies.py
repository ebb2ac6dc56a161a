"""Copies of networks in other types and places, which notice when the original's weights change."""

from __future__ import annotations

import copy
import itertools
import weakref
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..base.forks import ThreadLock
from ..base.native import _C

_PLAIN = {Tensor, nn.Parameter}

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def same_values(network: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers of a network, in the types and places of the other's, equal the other's.

    The values themselves are compared. Version counters would miss what fused optimisers, ``.data``, views and shared
    memory change. It costs one read of both: decoding one image reads little more, so the compiled module compares what
    it can, all in one call. That compares bits, and 0 and -0 differ there.
    """
    names, ours = _tensors(network)
    other_names, theirs = _tensors(other)
    if names != other_names:
        return False
    addresses: list[tuple[int, int, int]] = []
    others: list[tuple[Tensor, Tensor]] = []
    for mine, its in zip(ours, theirs, strict=True):
        if mine is None or its is None:
            if mine is not its:
                return False
        elif mine.shape != its.shape:
            return False
        elif _C is not None and mine.dtype == its.dtype and _lies_in_a_piece(mine) and _lies_in_a_piece(its):
            addresses.append((mine.data_ptr(), its.data_ptr(), mine.nbytes))
        else:
            others.append((mine, its))
    return (not addresses or _C.same_bytes(addresses)) and all(torch.equal(mine.to(its), its) for mine, its in others)


def _tensors(network: nn.Module) -> tuple[list[str], list[Tensor | None]]:
    """The parameters and buffers of a network and of all its modules, with names that say which modules it has, and
    what parametrisations make of them now.

    ``state_dict`` takes ten times as long. ValueError where a module has hooks.
    """
    names: list[str] = []
    found: list[Tensor | None] = []

    def collect(module: nn.Module) -> None:
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"expected a network without hooks, got a {type(network).__name__} with a forward hook on a "
                f"{type(module).__name__}: a copy of its weights computes, which would not follow the hook; remove it"
            )
        if "parametrizations" in module._modules:  # which may follow more than tensors
            for name in module._modules["parametrizations"]._modules:  # type: ignore[union-attr]
                names.append(f"={name}")
                found.append(getattr(module, name))
        for kept in (module._parameters, module._buffers):
            names.extend(kept)
            found.extend(kept.values())
        for name, child in module._modules.items():
            names.append(name)
            if child is not None:
                collect(child)

    collect(network)
    return names, found


def _lies_in_a_piece(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but a stretch of this machine's memory."""
    return tensor.is_cpu and type(tensor) in _PLAIN and tensor.is_contiguous()


class Copies(Generic[Network]):
    """The copies of networks, by type and device; each is made anew when its network's values have changed since.

    A copy is in eval mode, without gradients, and lives as long as its network. Safe in several threads.
    """

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[Network, dict[tuple[torch.dtype, torch.device], Network]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = ThreadLock()

    def get(self, network: Network, dtype: torch.dtype, device: torch.device | str) -> Network:
        """The network's copy in a type on a device: the same object until its values change. ValueError on 'meta', and
        for a network with hooks.
        """
        key = dtype, torch.device(device)
        with self._lock:
            kept = self._kept.setdefault(network, {})
            if any(weight.is_meta for weight in itertools.islice(network.parameters(), 1)):
                raise ValueError(f"expected a {type(network).__name__} that has weights, got one on the device 'meta'")
            if key not in kept:
                _tensors(network)  # or its error
            if key not in kept or not same_values(network, kept[key]):
                kept[key] = copy.deepcopy(network).to(key[1], key[0]).eval().requires_grad_(False)
            return kept[key]
