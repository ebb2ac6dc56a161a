"""The triton engine decodes small networks with every promise kept. Where it runs: tests/support/triton_device.py.

On a GPU tests/engines/test_engines.py holds it to the same and more; a decode in the interpreter takes ten seconds or
more, so that here one decode serves several promises.
"""

import collections
import contextlib
import dataclasses
import threading
from types import SimpleNamespace

import pytest
import torch
from support.helpers import assert_chosen, cells, noisy, real_images, trained_model
from support.triton_device import INTERPRETED, on_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pxfast.engines import triton
from pxfast.engines.choosers import Greedy, Sample
from pxfast.engines.schedule import schedule_for
from pxfast.pixeldefend.verify import verify

pytestmark = on_device


@pytest.fixture(autouse=True)
def faster_interpreter():
    """Without its checks of integers for overflow, which the kernels' own tests have passed."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import interpreter_builder

    before = interpreter_builder.options
    interpreter_builder.options = dataclasses.replace(before, sanitize_overflow=False)
    yield
    interpreter_builder.options = before


def decode(model, images: Tensor, chooser, **more) -> Tensor:
    return triton.decode(schedule_for(model), images, chooser, precision="fp32", **more)


def test_exact_bounded_and_independent_of_the_batch():
    model = trained_model((4, 4), 3, 8, 1)  # of more rows: the graphs below
    black = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    images = torch.cat((noisy(real_images(3, (4, 4), 5)), black, 255 - black))
    eps = torch.tensor([0, 1, 16, 40, 255, 255, 20], dtype=torch.uint8)
    before, seen = images.clone(), []
    result = decode(model, images, Greedy(eps), report=seen.append)
    assert torch.equal(images, before), "the input is left alone"
    assert seen == sorted(seen)
    assert seen[-1] == 7
    for i, radius in enumerate(eps.tolist()):
        verdict = verify(images[i : i + 1], result[i : i + 1], radius, model=model)
        assert verdict.passed, f"eps {radius}: {verdict}"
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[4], result[5]), "eps 255 forgets the input"
    assert not torch.equal(result[2], images[2])
    order = [3, 2]  # another order, other neighbours, narrower ranges beside them
    assert torch.equal(decode(model, images[order], Greedy(eps[order])), result[order])


def test_ranges_of_every_sub_pixel_alone_decide():
    model = trained_model((4, 4), 3, 8, 1)
    images = noisy(real_images(3, (4, 4), 4))
    lower, upper = cells(images, 132)
    lower[0], upper[0] = images[0], images[0]
    lower[1], upper[1] = 0, 255
    chooser = Greedy(within=(lower, upper))
    twice = Greedy(within=(lower.repeat(2, 1, 1, 1), upper.repeat(2, 1, 1, 1)))
    result, of_others = decode(model, torch.cat((images, lower)), twice).split(4)
    assert_chosen(model, images, result, chooser)
    assert torch.equal(result[0], images[0])
    assert torch.equal(of_others, result), "what the image was does not show"
    narrow = Greedy(within=(lower[2:], upper[2:]))  # fewer values in a program
    assert torch.equal(decode(model, images[2:], narrow), result[2:])
    drawn = Sample(5, within=(lower, upper))
    assert_chosen(model, images, decode(model, images, drawn), drawn)


@pytest.mark.parametrize("head", ["softmax", "pixelcnn++"])
def test_the_other_heads_are_exact(head):
    model = trained_model((4, 4), 3, 9, 1, head)
    images = noisy(real_images(3, (4, 4), 4))
    result = decode(model, images, Greedy(16))
    verdict = verify(images, result, 16, model=model)
    assert verdict.passed, str(verdict)


def test_samples_follow_their_random_numbers_and_chunks_do_not_show(monkeypatch):
    model = trained_model((4, 4), 1, 8, 1)
    monkeypatch.setattr(triton, "MOST_IMAGES", 16)
    schedule = schedule_for(model)
    schedule.compiled.clear()
    anything = torch.zeros(20, 1, 4, 4, dtype=torch.uint8)
    chooser = Sample(seed=5, temperature=0.9)
    result = decode(model, anything, chooser)
    assert_chosen(model, anything, result, chooser)
    assert len(result.unique()) > 30


def test_likely_values_are_kept():
    model = trained_model((4, 4), 1, 8, 1)
    images = noisy(real_images(1, (4, 4), 16), 40)
    chooser = Greedy(16, keep_bits=9.0)
    result = decode(model, images, chooser)
    assert_chosen(model, images, result, chooser)
    assert (result == images).float().mean() > 0.1


def test_two_threads_may_decode_at_once_and_an_error_in_the_report_comes_out():
    model = trained_model((4, 4), 1, 8, 1)
    images = noisy(real_images(1, (4, 4), 3))
    inputs = [images, 255 - images]
    results: list[Tensor | None] = [None, None]

    def work(i: int) -> None:
        results[i] = decode(model, inputs[i], Greedy(16))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for given, result in zip(inputs, results, strict=True):
        assert result is not None
        assert verify(given, result, 16, model=model).passed

    def report(finished: int) -> None:
        raise LookupError("from the report")

    with pytest.raises(LookupError, match="from the report"):
        decode(model, images, Greedy(4), report=report)


class NoWork(TorchDispatchMode):
    """Refuses every operation of torch."""

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        raise AssertionError(f"{function} in a capture")


class Graphs:
    """What the engine asks of torch.cuda, with graphs that keep launches and run them when they are replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pxfast.kernels.launch import Launch

        self.events: list[str] = []
        self.capturing = None
        run = Launch.run

        def run_or_keep(launch) -> None:
            if self.capturing is None:
                self.events.append("launch")
                run(launch)
            else:
                self.capturing.append(launch)

        @contextlib.contextmanager
        def capture(graph, stream, capture_error_mode):
            assert self.events[-1] == "synchronize", "what was launched to compile it has ended"
            self.events.append("capture")
            self.capturing = graph.launches
            with NoWork():
                yield
            self.capturing = None

        graphs = self

        class Graph:
            def __init__(self) -> None:
                self.launches: list = []

            def replay(self) -> None:
                graphs.events.append("replay")
                for launch in self.launches:
                    run(launch)

        monkeypatch.setattr(Launch, "run", run_or_keep)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the caller's")

    def synchronize(self) -> None:
        self.events.append("synchronize")

    def wait_stream(self, stream: str) -> None:
        self.events.append(f"wait for {stream}")

    def record_event(self):
        return SimpleNamespace(synchronize=lambda: self.events.append("row"))


@pytest.mark.skipif(not INTERPRETED, reason="a GPU captures for itself")
def test_rows_are_replayed_from_a_graph_of_their_phase(make_model, monkeypatch):
    model = make_model((8, 4), mixtures=5)
    images = noisy(real_images(1, (8, 4), 3))
    decoder = triton.decoder_for(schedule_for(model), "fp32")
    runner = decoder.take(3)
    graphs = Graphs(monkeypatch)
    runner.on_gpu, runner.stream = True, graphs
    decoder.give_back(runner)
    verdict = verify(images, decode(model, images, Greedy(16)), 16, model=model)
    assert verdict.passed, str(verdict)
    counts = collections.Counter(graphs.events)
    assert graphs.events[0] == "wait for the caller's"
    assert graphs.events[-1] == "synchronize"
    assert counts["capture"] == 3
    assert counts["replay"] == 8
    assert counts["row"] == 8 - triton.ROWS_AHEAD, "no more rows than that are ahead of the device"
    assert counts["launch"] < 60, "a launch of every shape class of a phase, to compile it"
    graphs.events.clear()
    other = Greedy(torch.tensor([3, 0, 31], dtype=torch.uint8))  # data: the same graphs serve
    result = decode(model, images, other)
    assert not {"capture", "launch"} & set(graphs.events)
    for image, purified, eps in zip(images.split(1), result.split(1), other.eps.tolist(), strict=True):
        assert verify(image, purified, eps, model=model).passed


@pytest.mark.skipif(not INTERPRETED, reason="a GPU multiplies bf16 rightly")
def test_the_interpreter_refuses_bf16(make_model):
    model = make_model((8, 4))
    with pytest.raises(RuntimeError, match="only fp32"):
        triton.decode(schedule_for(model), real_images(1, (8, 4), 1), Greedy(4), precision="bf16")
