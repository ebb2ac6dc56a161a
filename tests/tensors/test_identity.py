"""A module's identity: the same in every process, and another one for whatever may change what it computes."""

from __future__ import annotations

import copy
import functools
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from support import own_classifiers
from support.helpers import run_python
from support.own_classifiers import Features, SmallCNN, Wrapped
from torch import nn

import pxfast
from pxfast.tensors.identity import identity_of

SOURCE = """
import torch
from torch import nn
from helper_of_{name} import shift
SCALE = 2.0
class Net(nn.Module):
    '''A network.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)
        self.kinds = {{"b", "a", "c"}}
    def forward(self, x):  # of images
        return self.linear(shift(x.flatten(1)[..., :4]) * SCALE)
"""
HELPER = "OFFSET = 0.25\ndef shift(x):\n    return x - OFFSET\n"


def key(network: nn.Module) -> str:
    identity = identity_of(network)
    assert identity.complete
    return identity.key


def weights(network: SmallCNN) -> None:
    with torch.no_grad():
        network.first.weight[0, 0, 0, 0] += 1e-7


def plain_tensor(network: SmallCNN) -> None:
    network.scale = torch.tensor(4.00001)


def attribute(network: SmallCNN) -> None:
    network.second.stride = (1, 1)


def order(network: SmallCNN) -> None:
    network._modules["first"] = network._modules.pop("first")


def hook(network: SmallCNN) -> None:
    network.register_forward_hook(lambda module, given, output: 2 * output)


def own_forward(network: SmallCNN) -> None:
    network.forward = types.MethodType(lambda self, x: self.output(x.mean((2, 3)).repeat(1, 16)), network)


def another_layer(network: SmallCNN) -> None:
    network.first = nn.Sequential(network.first)


def activation(network: SmallCNN) -> None:
    network.second.register_forward_pre_hook(functools.partial(lambda x, module, given: None, 3.0))


CHANGES = (weights, plain_tensor, attribute, order, hook, own_forward, another_layer, activation)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_may_change_a_result_changes_the_key(change):
    network = SmallCNN().eval()
    before = key(network)
    assert key(copy.deepcopy(network)) == before
    assert key(SmallCNN().eval()) == before
    change(network)
    assert key(network) != before


def test_a_second_look_finds_the_same():
    """Reducing an object, which the first look does, may leave a mark on its class."""

    class Settings:
        pass

    network = SmallCNN().eval()
    network.settings = Settings()
    assert key(network) == key(network)
    assert "__slotnames__" in vars(Settings)


def test_buffers_that_no_state_has_count():
    network = Features().eval()
    before = key(network)
    network.mean += 0.01
    assert "mean" not in network.state_dict()
    assert key(network) != before


def test_global_values_and_functions_that_the_code_names_count(monkeypatch):
    before = key(SmallCNN().eval())
    monkeypatch.setattr(own_classifiers, "OFFSET", 0.25)
    assert key(SmallCNN().eval()) != before
    monkeypatch.undo()
    assert key(SmallCNN().eval()) == before
    monkeypatch.setattr(own_classifiers, "centred", lambda x: x)
    assert key(SmallCNN().eval()) != before


def test_closures_count():
    def scaled(factor: float) -> nn.Module:
        return Wrapped(SmallCNN(), lambda network, x: factor * network(x)).eval()

    assert key(scaled(2.0)) == key(scaled(2.0)) != key(scaled(3.0))


def test_modes_and_classes_count():
    network = SmallCNN().eval()

    class Renamed(SmallCNN):
        pass

    assert key(Renamed().eval()) != key(network)
    before = key(network)
    network.second.train()
    assert key(network) != before


def test_circles_and_deep_modules_have_one():
    network = SmallCNN().eval()
    object.__setattr__(network.first, "parent", network)
    assert key(network) == key(network)
    deep = nn.Identity()
    for _ in range(300):
        deep = nn.Sequential(deep)
    assert key(deep) != key(nn.Sequential(deep))


def test_what_is_no_python_is_told():
    network = SmallCNN().eval()
    network.lock = threading.Lock()
    identity = identity_of(network)
    assert not identity.complete
    assert identity.key == identity_of(network).key


@pytest.mark.process
def test_it_is_the_same_in_every_process_and_follows_the_files(tmp_path: Path):
    """Sets have another order in each process; comments and docstrings say nothing; what is imported counts."""
    place = tmp_path / "mine"
    place.mkdir()

    def keys(source: str, helper: str) -> str:
        (place / "net_of_one.py").write_text(source)
        (place / "helper_of_one.py").write_text(helper)
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True\n"
            "import net_of_one\nfrom pxfast.tensors.identity import identity_of\n"
            "print(identity_of(net_of_one.Net().eval()))"
        )
        return run_python(code, str(place))

    source = SOURCE.format(name="one")
    first = keys(source, HELPER)
    assert "complete=True" in first
    assert keys(source.replace("# of images", "# of anything"), HELPER) == first
    assert keys(source, HELPER.replace("x - OFFSET", "x + OFFSET")) != first


def test_how_many_purifiers_were_made_before_does_not_matter() -> None:
    """Or what a store has of one would not be found again by a run that makes others first."""
    for make in (lambda: pxfast.Purifier(2), pxfast.ADPPurifier):
        assert key(make()) == key(make())
    assert key(pxfast.Purifier(2)) != key(pxfast.Purifier(3))


class Slow:
    """An object that is asked for its state until it is told to go on."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()

    def __reduce_ex__(self, protocol: int) -> tuple[type, tuple[()]]:
        self.asked.set()
        self.go_on.wait()
        return Slow, ()


def test_threads_leave_the_limit_of_recursion_as_it_was() -> None:
    """Also where the first to come is the first to go."""
    before = sys.getrecursionlimit()
    slow, threads = [Slow(), Slow()], []
    for each in slow:
        network = nn.Linear(1, 1)
        network.extra = each
        threads.append(threading.Thread(target=identity_of, args=(network,)))
        threads[-1].start()
        each.asked.wait()
    meanwhile = []
    for each, thread in zip(slow, threads, strict=True):
        meanwhile.append(sys.getrecursionlimit())
        each.go_on.set()
        thread.join()
    assert min(meanwhile) > before
    assert sys.getrecursionlimit() == before
