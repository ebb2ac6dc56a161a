"""Copies of networks in other types and places, which notice when the original's weights change."""

from __future__ import annotations

import copy
import threading
import weakref
from typing import Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def same_values(network: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers of a network, in the types and places of the other's, equal the other's.

    The values themselves are compared. Version counters would miss what fused optimisers, ``.data``, views and shared
    memory change. It costs one read of both.
    """
    ours, theirs = network.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        value.shape == theirs[name].shape and torch.equal(value.to(theirs[name]), theirs[name])
        for name, value in ours.items()
    )


class Copies(Generic[Network]):
    """The copies of networks, by type and device; each is made anew when its network's values have changed since.

    A copy is in eval mode, without gradients, and lives as long as its network. Safe in several threads.
    """

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[Network, dict[tuple[torch.dtype, torch.device], Network]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def get(self, network: Network, dtype: torch.dtype, device: torch.device | str) -> Network:
        """The network's copy in a type on a device: the same object until its values change."""
        key = dtype, torch.device(device)
        with self._lock:
            kept = self._kept.setdefault(network, {})
            if key not in kept or not same_values(network, kept[key]):
                kept[key] = copy.deepcopy(network).to(key[1], key[0]).eval().requires_grad_(False)
            return kept[key]
