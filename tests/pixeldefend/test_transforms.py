"""A purifier under torch.compile and torch.func: it goes through, or says why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.engines import QUICK
from support.helpers import real_images
from torch import Tensor, nn

import pxfast
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.defences import Defended, FeatureSqueezing

X = real_images(1, (8, 8), 3) / 255


@pytest.fixture
def purifier(tiny_model: pxfast.PixelCNN) -> pxfast.Purifier:
    return pxfast.Purifier(16, model=tiny_model, engine=QUICK, precision="fp32")


@pytest.fixture
def defended(purifier: pxfast.Purifier) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(purifier, nn.Flatten(), nn.Linear(64, 10)).eval()


def tiny_scorer() -> ScoreNetwork:
    return ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=4)).eval().requires_grad_(False)


def test_a_compiled_network_purifies_as_the_plain_one_and_has_its_gradient(defended: nn.Module) -> None:
    compiled = torch.compile(defended, backend="eager")
    gradients = []
    for network in (defended, compiled):
        x = X.clone().requires_grad_()
        logits = network(x)
        gradients.append(torch.autograd.grad(logits[:, 0].sum(), x)[0])
        assert torch.equal(logits, defended(X))
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_functional_call_goes_through(defended: nn.Module) -> None:
    weights = {name: 2 * value.detach() for name, value in defended.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(defended, weights, (X,)), 2 * defended(X))


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f: torch.func.vmap(lambda image: f(image[None])[0])(X),
        lambda f: torch.func.grad(lambda x: f(x).sum())(X),
        lambda f: torch.func.jacrev(lambda x: f(x).flatten()[:1])(X),
        lambda f: torch.func.jvp(f, (X,), (torch.ones_like(X),)),
    ],
    ids=["vmap", "grad", "jacrev", "jvp"],
)
def test_other_transforms_of_torch_func_are_refused_with_what_to_do(
    transformed: Callable[[Callable[[Tensor], Tensor]], object], purifier: pxfast.Purifier, tiny_model: pxfast.PixelCNN
) -> None:
    adp = [pxfast.ADPPurifier(0.1, steps=1, model=tiny_scorer(), backward=way) for way in ("straight-through", "full")]
    squeezing = [FeatureSqueezing(), FeatureSqueezing(clip=True)]
    for function in (purifier, lambda x: pxfast.bits_per_dim(x, model=tiny_model), *adp, *squeezing):
        with pytest.raises(TypeError, match=r"inside a transform of torch.func .* take gradients with torch.autograd"):
            transformed(function)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_is_refused_in_which_the_result_would_be_a_constant(
    purifier: pxfast.Purifier, defended: nn.Module, tiny_model: pxfast.PixelCNN
) -> None:
    adp = pxfast.ADPPurifier(0.1, steps=1, model=tiny_scorer())
    drawn = lambda x: adp.draw(x, [0, 1, 2])  # noqa: E731
    for function in (purifier, defended, adp, drawn, lambda x: pxfast.log_prob(x, model=tiny_model)):
        with pytest.raises(TypeError, match=r"got one of a trace \(torch.jit.trace, .* trace the classifier alone"):
            torch.jit.trace(function, (X,), check_trace=False)
    assert purifier(X).shape == X.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_what_needs_no_values_is_a_function_of_the_images() -> None:
    network = Defended(nn.Flatten(), [FeatureSqueezing(8)])
    assert torch.equal(torch.jit.trace(network, (X,))(1 - X), network(1 - X))
