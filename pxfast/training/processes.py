"""Data-parallel training under torchrun: who this process is, and what the processes tell each other."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..base.machine import parse_device

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Processes:
    """One of ``count`` processes that train together, the ``rank``-th, on its ``device``. One alone by default."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch, on its device. The parts may differ by one image; none may be empty.

        ValueError when the batch has fewer images than there are processes.
        """
        if len(batch) < self.count:
            raise ValueError(f"a batch of {len(batch)} images can't be shared by {self.count} processes")
        part = batch.tensor_split(self.count)[self.rank]
        if self.device.type == "cuda" and part.device.type == "cpu":
            return part.contiguous().pin_memory().to(self.device, non_blocking=True)
        return part.to(self.device)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes of a tensor on the device; every process must call it."""
        value = value.detach().clone()
        if self.count > 1:
            dist.all_reduce(value)
            value /= self.count
        return value

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The first process's ``seconds``, and whether any one wants to ``stop``; every process must call it."""
        if self.count == 1:
            return seconds, stop
        told = torch.tensor([seconds if self.first else 0.0, float(stop)], dtype=torch.float64, device=self.device)
        dist.all_reduce(told)
        return float(told[0]), bool(told[1] > 0)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module; with several processes, wrapped so that its gradients become their means as they are computed.

        Every process then has the first one's weights, and ``backward`` waits for the others.
        """
        if self.count == 1:
            return module
        for parameter in module.parameters():  # a softmax head of one channel has a table without elements
            parameter.requires_grad_(parameter.numel() > 0)
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def spread(self, module: nn.Module) -> None:
        """Give every process the first one's weights; every process must call it."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                contiguous = tensor.contiguous()
                dist.broadcast(contiguous, 0)
                tensor.copy_(contiguous)


def is_first() -> bool:
    """Whether torchrun has started this process as the first one, or has not started it."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def join(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started, or be alone where it did not start this one.

    device: as :func:`parse_device` takes it; under torchrun 'cuda' is the GPU of this process's local rank.
    """
    chosen = parse_device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if chosen.type == "cuda" and chosen.index is None:
        chosen = parse_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Processes(device=chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()
