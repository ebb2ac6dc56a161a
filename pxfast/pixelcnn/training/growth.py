"""A larger network that begins as the same function as a trained one.

Chen et al., *Net2Net*, ICLR 2016, for the PixelCNN++: when a small network stops improving, a larger one goes on from
where it is. New features reach the old ones through weights of zero, new layers add nothing to what they pass on, and
training moves both away from it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..network import PixelCNN, PixelCNNConfig, WeightNormConv


@torch.no_grad()
def grown(model: PixelCNN, config: PixelCNNConfig, images: Tensor) -> PixelCNN:
    """A network of ``config`` that gives ``model``'s log-probabilities, up to rounding; on the model's device.

    config: the model's but for more ``filters`` or ``resnets``, or another dropout. images: some training images, uint8
    (N, C, H, W); the weights of what is new are random, their scale is set by these (data-dependent initialisation).
    ValueError when ``config`` is of no such network.
    """
    old = model.config
    larger = dataclasses.replace(old, filters=config.filters, resnets=config.resnets, dropout=config.dropout)
    if config != larger or config.filters < old.filters or config.resnets < old.resnets:
        raise ValueError(f"expected to start from a model of {config}, or a narrower or shallower one, got {old}")
    network = PixelCNN(config).to(next(model.parameters()).device).to(memory_format=torch.channels_last)
    network.head.load_state_dict(model.head.state_dict())
    sources = dict(model.convolutions())
    hooks = []
    for name, convolution in network.convolutions():
        source = sources.get(_name_in(old, name, config.resnets - old.resnets))
        finish = None
        if source is not None:
            finish = _take_over(source, convolution, old.filters, config.filters)
        elif name.endswith("conv_out"):
            finish = _silence
        hooks.append(convolution.register_forward_pre_hook(_initialise_then(finish)))
    network(images.to(model.output.v.device))
    for hook in hooks:
        hook.remove()
    return network


def _name_in(old: PixelCNNConfig, name: str, added: int) -> str:
    """The convolution's name in a network of ``added`` fewer layers per level; one that is not there if it is new.

    The ends of the ways down are new, and so are the beginnings of the ways up, which take what those leave behind.
    """

    def earlier(found: re.Match[str]) -> str:
        way, level, layer = found[1], found[2], int(found[3])
        layer = layer - added if way == "up" else layer if layer < old.resnets else -1
        return f"{way}.{level}.{layer}."

    return re.sub(r"^(down|up)\.(\d+)\.(\d+)\.", earlier, name)


def _places(old_size: int, new_size: int, old_filters: int, new_filters: int) -> Tensor:
    """Where the old features are among the new ones: concat-ELU, gates and skips lay blocks of them side by side."""
    if old_size == new_size:
        return torch.arange(new_size)
    blocks = range(old_size // old_filters)
    return torch.cat([torch.arange(old_filters) + block * new_filters for block in blocks])


def _take_over(
    source: WeightNormConv, target: WeightNormConv, old_filters: int, new_filters: int
) -> Callable[[WeightNormConv], None]:
    """Give the old outputs their weights from the old inputs, and none from the new ones. Gives what their g and b need
    once those of all outputs have been set."""
    outputs = _places(source.out_features, target.out_features, old_filters, new_filters)
    inputs = _places(source.in_features, target.in_features, old_filters, new_filters)

    def by_output(v: Tensor) -> Tensor:
        return v.transpose(0, 1) if target.transposed else v

    rows = torch.zeros(len(outputs), target.in_features, *target.kernel, device=target.v.device)
    rows[:, inputs.to(rows.device)] = by_output(source.v.detach()).contiguous()
    outputs = outputs.to(rows.device)
    by_output(target.v.data)[outputs] = rows

    def finish(convolution: WeightNormConv) -> None:
        convolution.g[outputs] = source.g
        convolution.b[outputs] = source.b

    return finish


def _silence(convolution: WeightNormConv) -> None:
    """A gated layer whose last convolution gives zero passes its input on. Its directions stay, to be learnt from."""
    convolution.g.zero_()
    convolution.b.zero_()


def _initialise_then(finish: Callable[[WeightNormConv], None] | None) -> Callable[[WeightNormConv, tuple[Any]], None]:
    def hook(convolution: WeightNormConv, inputs: tuple[Any]) -> None:
        convolution.initialise_from(*inputs)
        if finish is not None:
            finish(convolution)

    return hook
