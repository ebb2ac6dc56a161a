"""Copies of networks follow their originals, however these are changed."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.helpers import noisy, random_model, real_images
from torch import Tensor, nn

import pxfast
from pxfast import PixelCNN
from pxfast.adp.purifier import ADPPurifier
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.engines.schedule import schedule_for
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.pixelcnn.oracle import frozen, oracle
from pxfast.tensors.copies import Copies, same_values


def weight_of(network: nn.Module) -> nn.Parameter:
    return next(parameter for parameter in network.parameters() if parameter.dim() > 1 and parameter.numel() > 16)


def by_fused_adam(network: nn.Module) -> None:
    optimiser = torch.optim.Adam(network.parameters(), 0.05, fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()


def by_data_assignment(network: nn.Module) -> None:
    weight_of(network).data = weight_of(network).data + 0.5  # not a factor, which weight normalisation undoes


def by_data_in_place(network: nn.Module) -> None:
    weight_of(network).data.add_(0.5)


def by_a_view(network: nn.Module) -> None:
    weight_of(network).detach().view(-1)[3:7] += 0.5


def by_numpy(network: nn.Module) -> None:
    """The values lie in memory that something else writes, as shared memory does."""
    shared = torch.from_numpy(weight_of(network).detach().numpy().copy())
    weight_of(network).data = shared
    shared.numpy()[...] += np.float32(0.25)


def by_load_state_dict(network: nn.Module) -> None:
    network.load_state_dict({name: value * 1.25 for name, value in network.state_dict().items()}, assign=True)


CHANGES: list[Callable[[nn.Module], None]] = [
    by_fused_adam,
    by_data_assignment,
    by_data_in_place,
    by_a_view,
    by_numpy,
    by_load_state_dict,
]
changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def fresh(model: PixelCNN) -> PixelCNN:
    """A model of equal weights of which nothing is kept."""
    return copy.deepcopy(model)


@changes
def test_everything_goes_by_the_weights_of_now(change: Callable[[nn.Module], None]) -> None:
    model = random_model().requires_grad_(True)
    images = noisy(real_images(1, (8, 8), 2))

    def results(of: PixelCNN) -> list[Tensor]:
        return [
            pxfast.log_prob(images, model=of),
            pxfast.purify(images, 16, model=of, precision="fp32"),
            pxfast.sample(2, model=of, precision="fp32"),
            pxfast.verify(images, images, 16, model=of).regret,
            pxfast.verify(images, images, 16, model=of, precision="bf16").regret,
            pxfast.Purifier(model=of).log_prob_gradient(images / 255),
        ]

    before = results(model)
    change(model)
    after, expected = results(model), results(fresh(model))
    for stale, found, right in zip(before, after, expected, strict=True):
        assert torch.equal(found, right)
        assert stale.shape != right.shape or not torch.equal(stale, right), "the change changes nothing"


@changes
def test_score_networks_of_other_types_follow_theirs(change: Callable[[nn.Module], None]) -> None:
    network = ScoreNetwork(ScoreNetworkConfig((8, 8), 1, 8)).eval()
    x = real_images(1, (8, 8), 2).double() / 255
    purifier = ADPPurifier(0.1, steps=2, model=network)
    before = purifier(x)
    change(network)
    found = purifier(x)
    assert torch.equal(found, ADPPurifier(0.1, steps=2, model=copy.deepcopy(network))(x))
    assert not torch.equal(found, before)


def test_what_has_not_changed_is_kept(make_model: Callable[..., PixelCNN]) -> None:
    model = make_model()
    network, schedule, judge = frozen(model), schedule_for(model), oracle(model, "bf16")
    pxfast.log_prob(real_images(1, (8, 8), 1), model=model)
    assert frozen(model) is network
    assert schedule_for(model) is schedule
    assert oracle(model, "bf16") is judge
    assert frozen(network) is network
    with torch.no_grad():
        weight_of(model).mul_(1.0)  # the same values, another version
    assert schedule_for(model) is schedule


def test_copies_are_of_a_type_and_a_place_and_die_with_their_network() -> None:
    copies: Copies[nn.Linear] = Copies()
    network = nn.Linear(3, 2)
    wide = copies.get(network, torch.float64, "cpu")
    assert wide.weight.dtype == torch.float64
    assert not wide.weight.requires_grad
    assert copies.get(network, torch.float32, "cpu") is not network
    assert same_values(network, wide)
    alive = weakref.ref(wide)
    del network, wide
    gc.collect()
    assert alive() is None


def test_values_are_compared_buffers_too() -> None:
    network = nn.BatchNorm1d(4)
    other = copy.deepcopy(network)
    assert same_values(network, other)
    network.running_mean.data[1] = 3.0
    assert not same_values(network, other)
    assert not same_values(nn.BatchNorm1d(5), other)
    assert not same_values(nn.Linear(4, 4), other)


@pytest.mark.parametrize("compiled", [True, False])
def test_values_of_every_kind_are_compared(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr("pxfast.tensors.copies._C", None)

    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3, bias=False))  # the latter's bias is None
            self.register_buffer("turned", torch.arange(12.0).reshape(3, 4).T)
            self.register_buffer("every_second", torch.arange(8)[::2])
            self.register_buffer("fleeting", torch.ones(2, dtype=torch.bool), persistent=False)
            self.register_buffer("none", None)
            self.register_buffer("empty", torch.zeros(0))

    network = Kinds()
    other = copy.deepcopy(network)
    assert same_values(network, other)
    assert same_values(network, copy.deepcopy(network).to(torch.float64))
    for name in ("turned", "every_second", "fleeting"):
        changed = copy.deepcopy(network)
        changed.get_buffer(name)[1] = 0
        assert not same_values(changed, other), name
    changed = copy.deepcopy(network)
    changed.none = torch.zeros(1)
    assert not same_values(changed, other)
    changed = copy.deepcopy(network)
    changed.inner[1] = nn.Linear(2, 3)
    assert not same_values(changed, other)
    changed = copy.deepcopy(network)
    changed.inner.append(nn.ReLU())
    assert not same_values(changed, other)


def test_a_network_without_weights_is_named(make_model):
    model = make_model()
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    for again in (False, True):  # the second time there is a copy of the weights that it had
        with pytest.raises(ValueError, match="expected a PixelCNN that has weights, got one on the device 'meta'"):
            pxfast.purify(images, model=copy.deepcopy(model).to("meta"))
        if not again:
            pxfast.purify(images, model=model)
            model.to("meta")
    for call in (pxfast.log_prob, pxfast.bits_per_dim, pxfast.Detector(model).fit):
        with pytest.raises(ValueError, match="expected a PixelCNN that has weights"):
            call(images, **({} if call.__name__ == "fit" else {"model": model}))


class Shifted(nn.Module):
    """A parametrisation that follows a plain attribute, as an adapter's scale is one."""

    scale = 0.0

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * weight.abs()


def test_what_a_parametrisation_makes_of_the_weights_counts(make_model) -> None:
    model = make_model()
    shifted = Shifted()
    nn.utils.parametrize.register_parametrization(model.output, "v", shifted)
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = pxfast.log_prob(images, model=model), model_fingerprint(model), schedule_for(model)
    assert schedule_for(model) is before[2]
    shifted.scale = 3.0
    after = pxfast.log_prob(images, model=model), model_fingerprint(model), schedule_for(model)
    assert torch.equal(after[0], pxfast.log_prob(images, model=copy.deepcopy(model)))
    assert not torch.equal(after[0], before[0])
    assert after[1] != before[1]
    assert after[2] is not before[2]


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("used", [False, True])
def test_a_network_with_hooks_is_refused(make_model, register: str, used: bool) -> None:
    """The engines would not run them, and a copy would run those that it was made with."""
    model = make_model()
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    if used:
        pxfast.purify(images, model=model)
    handle = getattr(model.output, register)(lambda *arguments: None)
    for call in (pxfast.purify, pxfast.log_prob):
        with pytest.raises(ValueError, match="a network without hooks, got a PixelCNN with a forward hook on a"):
            call(images, model=model)
    handle.remove()
    pxfast.purify(images, model=model)
