"""Defended classifiers under torch.compile: one graph, in which a purifier is one operator."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from support.engines import QUICK
from support.helpers import real_images
from support.small_defences import Noisy
from torch import Tensor, nn

import pxfast
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.defences import Defended, FeatureSqueezing
from pxfast.tensors import opaque
from pxfast.tensors.opaque import Opaque

X = real_images(1, (8, 8), 5) / 255
RELEASE = tuple(map(int, torch.__version__.split(".")[:2]))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def classifier() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.fixture
def purifier(tiny_model: pxfast.PixelCNN) -> pxfast.Purifier:
    return pxfast.Purifier(16, model=tiny_model, engine=QUICK, precision="fp32")


@pytest.fixture
def adp() -> pxfast.ADPPurifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=4)).eval().requires_grad_(False)
    return pxfast.ADPPurifier(0.1, steps=2, runs=3, model=network)


def compiled(module: nn.Module, backend: str = "aot_eager") -> nn.Module:
    """The module in one graph, or an error; aot_eager makes the graph that the compiler gets, and runs it as it is."""
    return torch.compile(module, fullgraph=True, backend=backend)


@pytest.mark.parametrize("kind", ["float32", pytest.param("float64", marks=pytest.mark.whole), "bfloat16", "uint8"])
def test_one_graph_has_the_bits_of_the_plain_call(
    kind: str, purifier: pxfast.Purifier, adp: pxfast.ADPPurifier
) -> None:
    images = (255 * X).to(torch.uint8) if kind == "uint8" else X.to(getattr(torch, kind))
    both = nn.Sequential(purifier, FeatureSqueezing(), adp)
    for module in (purifier, adp, both) if kind == "float32" else (both,):
        assert torch.equal(compiled(module)(images), module(images))
        torch._dynamo.reset()


@pytest.mark.parametrize("random", [pytest.param(False, marks=pytest.mark.whole), True])
def test_a_defended_classifier_is_one_graph_with_the_gradients_of_the_plain_one(
    random: bool, classifier: nn.Module, purifier: pxfast.Purifier, adp: pxfast.ADPPurifier
) -> None:
    defended = Defended(classifier, [FeatureSqueezing(), purifier, *([adp] if random else [])])
    explained = torch._dynamo.explain(defended)(X)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    found = []
    for network in (defended, compiled(defended)):
        x = X.clone().requires_grad_()
        logits = network(x)
        found.append((logits.detach(), *torch.autograd.grad(logits.logsumexp(1).sum(), x)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert found[0][1].abs().max() > 0


def test_a_gradient_may_be_forbidden(classifier: nn.Module, tiny_model: pxfast.PixelCNN) -> None:
    purifier = pxfast.Purifier(16, model=tiny_model, engine=QUICK, precision="fp32", backward="error")
    x = X.clone().requires_grad_()
    logits = compiled(Defended(classifier, [purifier]))(x)  # which is not asking for it
    with pytest.raises(RuntimeError, match="a gradient was asked for through a defence that has none"):
        logits.sum().backward()


def test_batches_of_other_sizes_share_a_graph(classifier: nn.Module, purifier: pxfast.Purifier) -> None:
    defended, graphs = Defended(classifier, [purifier]), []

    def count(graph: torch.fx.GraphModule, example: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    network = torch.compile(defended, fullgraph=True, backend=count)
    for size in (2, 3, 4, 5, 3, 2):
        torch.testing.assert_close(network(X[:size]), defended(X[:size]))
    assert len(graphs) == 2, "one for the first size, one for all others"
    operators = [node.target for node in graphs[1].graph.nodes if "pxfast" in str(node.target)]
    assert operators == [torch.ops.pxfast.purify]


def test_a_graph_asks_the_purifier_with_its_settings_of_now(purifier: pxfast.Purifier) -> None:
    network = compiled(purifier)
    assert torch.equal(network(X), purifier(X))
    purifier.eps = 0
    assert torch.equal(network(X), (255 * X).round() / 255)


def test_copies_have_handles_of_their_own(purifier: pxfast.Purifier, adp: pxfast.ADPPurifier) -> None:
    for module in (purifier, adp):
        others = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module)]
        handles = {each.handle for each in (module, *others)}
        assert len(handles) == 4
        assert "handle" not in module.__getstate__()
        assert all(torch.equal(each(X), module(X)) for each in others)
    other = copy.deepcopy(purifier)
    other.eps = 0
    assert torch.equal(compiled(other)(X), other(X))
    assert not torch.equal(other(X), purifier(X))


def test_a_plain_call_while_another_thread_compiles(
    purifier: pxfast.Purifier, adp: pxfast.ADPPurifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's flag is the process's."""
    random = Defended(nn.Flatten(), [purifier, adp])
    expected = [module(X) for module in (purifier, adp, random)]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(map(torch.equal, [module(X) for module in (purifier, adp, random)], expected))


def test_errors_are_those_of_the_plain_call(purifier: pxfast.Purifier) -> None:
    with pytest.raises(ValueError, match=r"floating-point images must be in \[0, 1\]"):
        compiled(purifier)(2 + X)


def test_a_purifier_of_someone_else_still_goes_through(classifier: nn.Module) -> None:
    defended = Defended(classifier, [Noisy(runs=2)])
    torch.testing.assert_close(torch.compile(defended, backend="eager")(X), defended(X))


def test_alternatives_are_in_the_graph(
    classifier: nn.Module, purifier: pxfast.Purifier, adp: pxfast.ADPPurifier
) -> None:
    for alternatives in ([[FeatureSqueezing()], []], [[adp], [FeatureSqueezing()]]):
        defended = Defended(classifier, [purifier], alternatives=alternatives, views="flip")
        torch.testing.assert_close(compiled(defended)(X), defended(X))


def test_the_operators_pass_torchs_own_checks(purifier: pxfast.Purifier) -> None:
    assert isinstance(purifier, Opaque)
    for images in (X, X.clone().requires_grad_()):
        arguments = (images, None, purifier.handle, "straight-through")
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.pxfast.purify.default, arguments, test_utils=checks)


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no such tag")
@pytest.mark.parametrize("name", ["purify", "refuse_gradient", "image_seeds", "derived_seeds"])
def test_no_cuda_graph_captures_what_looks_at_values(name: str) -> None:
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.pxfast, name).default.tags


@pytest.mark.parametrize("strict", [True, False])
def test_a_program_that_outlives_the_process_is_refused(
    strict: bool, classifier: nn.Module, purifier: pxfast.Purifier, adp: pxfast.ADPPurifier
) -> None:
    if RELEASE < (2, 7):
        pytest.skip("this torch does not tell a module that it is exported")
    for module in (purifier, adp, Defended(classifier, [adp])):
        with pytest.raises(Exception, match=r"torch\.export can\S*t take a purifier"):  # some quote it
            torch.export.export(module, (X,), strict=strict)
    assert torch.equal(compiled(purifier)(X), purifier(X))


def test_a_plain_call_while_another_thread_exports(purifier: pxfast.Purifier, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = purifier(X)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True, raising=False)
    assert torch.equal(purifier(X), expected)


def test_an_unknown_number_says_what_may_have_happened() -> None:
    with pytest.raises(RuntimeError, match="a purifier that this process does not have: it was deleted, or the graph"):
        torch.ops.pxfast.purify(X, None, 1 << 62, "straight-through")


def test_numbers_are_of_one_process_where_torch_does_not_tell_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.compiler, "is_exporting", raising=False)
    numbers = opaque._handles()
    assert len({next(numbers) for _ in range(4)}) == 4
    assert max(next(numbers) for _ in range(9)) > 1 << 40
    opaque._refuse_export()


@pytest.mark.compile
def test_the_compiler_makes_one_graph_of_a_classifier_and_its_purifier(
    classifier: nn.Module, purifier: pxfast.Purifier
) -> None:
    defended = Defended(classifier, [FeatureSqueezing(), purifier])
    network = compiled(defended, backend="inductor")
    with torch.no_grad():
        torch.testing.assert_close(network(X), defended(X))
        assert torch.equal(compiled(defended.defences, backend="inductor")(X), defended.defences(X))
