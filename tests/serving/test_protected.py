"""What a service answers, and what a replica makes of a request, without Ray."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
import types
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import bundled_images
from torch import nn

import pxfast
from pxfast.classifiers import load_classifier
from pxfast.data.image_decoding import decode_image
from pxfast.data.image_files import write_png
from pxfast.serving import Protected, deployment


@pytest.fixture(scope="module")
def protected() -> Protected:
    return Protected("fashion-mnist", purifier=pxfast.Purifier(32), detector=pxfast.Detector())


def png(image: Any) -> bytes:
    file = io.BytesIO()
    write_png(image, file)
    return file.getvalue()


def test_an_answer_is_what_the_parts_give(protected: Protected) -> None:
    images = bundled_images(1)[:3]
    answers = protected.answer(images.numpy())
    purified = pxfast.purify(images, 32)
    classifier = load_classifier("fashion-mnist")
    with torch.no_grad():
        logits, bare = classifier(purified.float() / 255), classifier(images.float() / 255)
    p_values = pxfast.Detector().p_value(images)
    for i, answer in enumerate(answers):
        assert torch.equal(torch.from_numpy(answer.purified), purified[i])
        assert answer.label == int(logits[i].argmax())
        assert answer.undefended_label == int(bare[i].argmax())
        assert answer.probabilities == pytest.approx(logits[i].softmax(0).tolist(), abs=1e-5)
        assert answer.p_value == pytest.approx(float(p_values[i]))
        assert answer.suspicious is (answer.p_value is not None and answer.p_value <= 0.05)
    assert "purified" not in answers[0].to_json()


def test_any_module_can_be_protected_and_need_not_be_judged() -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(784, 4)).train()
    protected = Protected(classifier, purifier=nn.Identity(), image_shape=(1, 28, 28))
    assert not classifier.training
    (answer,) = protected.answer(bundled_images(1)[:1].numpy())
    assert len(answer.probabilities) == 4
    assert answer.label == answer.undefended_label
    assert answer.p_value is None
    assert answer.suspicious is None
    assert np.array_equal(answer.purified, bundled_images(1)[0].numpy())


@pytest.mark.parametrize(
    ("classifier", "options", "error", "message"),
    [
        ("mnist", {}, ValueError, "unknown classifier 'mnist'"),
        (nn.Flatten(), {}, ValueError, "image_shape=(C, H, W) is needed"),
        (nn.Flatten(), {"image_shape": (28, 28)}, ValueError, "expected image_shape=(C, H, W)"),
        (nn.Flatten(), {"image_shape": (1, 0, 28)}, ValueError, "expected image_shape=(C, H, W)"),
        ("fashion-mnist", {"alpha": 1.0}, ValueError, "alpha"),
        ("fashion-mnist", {"detector": 0.05}, TypeError, "detector"),
        ("fashion-mnist", {"purifier": "pixeldefend"}, TypeError, "expected a classifier and a list of defences"),
        (nn.Identity(), {"image_shape": (1, 28, 28), "purifier": nn.Identity()}, ValueError, "expected logits (1, cla"),
    ],
)
def test_what_can_not_be_served_is_refused_at_once(
    classifier: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        Protected(classifier, **options)
    assert message in str(raised.value)


class Request:
    """As much of Starlette's request as a replica uses."""

    def __init__(self, method: str, body: bytes = b"", **query: str) -> None:
        self.method, self.body, self.query_params = method, body, query

    async def stream(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), 1 << 20):
            yield self.body[start : start + (1 << 20)]


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> deployment.Replica:
    """A replica, whose answers with another status are (content, status)."""
    responses = types.ModuleType("starlette.responses")
    responses.JSONResponse = lambda content, status, **options: (content, status)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "starlette", types.ModuleType("starlette"))
    monkeypatch.setitem(sys.modules, "starlette.responses", responses)
    threads = torch.get_num_threads()
    parts = {"purifier": pxfast.Purifier(8), "detector": None, "image_shape": None, "alpha": 0.05}
    made = deployment.Replica("fashion-mnist", parts, 1, 4, 0.0)
    torch.set_num_threads(threads)
    return made


def test_a_request_is_answered(replica: deployment.Replica) -> None:
    image = bundled_images(1)[0]
    answer = asyncio.run(replica(Request("POST", png(image), purified="1")))
    assert answer.keys() == {"label", "probabilities", "undefended_label", "p_value", "suspicious", "purified"}
    seen = decode_image(base64.b64decode(answer["purified"]))
    assert np.array_equal(seen, pxfast.purify(image, 8).numpy())
    assert "purified" not in asyncio.run(replica(Request("POST", png(image))))
    described = asyncio.run(replica(Request("GET")))
    assert described["image_shape"] == [1, 28, 28]
    assert described["pxfast"] == pxfast.__version__
    assert described["alpha"] is None
    replica.check_health()


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (Request("PUT", b""), 405, "expected GET or POST"),
        (Request("POST", b""), 400, "can't be read as an image"),
        (Request("POST", b"GIF89a"), 400, "can't be read as an image"),
        (Request("POST", png(bundled_images(3)[0])), 400, "expected an image (1, 28, 28)"),
        (Request("POST", png(bundled_images(1)[0]), purified="perhaps"), 400, "expected purified=1"),
        (Request("POST", bytes(5 << 20)), 413, "at most 4194304 bytes"),
    ],
)
def test_a_request_that_can_not_be_answered_says_why(
    replica: deployment.Replica, request_: Request, status: int, message: str
) -> None:
    content, found = asyncio.run(replica(request_))
    assert found == status
    assert message in content["error"]
    replica.check_health()  # the replica is as good as before


def test_a_replica_whose_work_fails_is_not_healthy(
    replica: deployment.Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(replica.protected, "answer", fail)
    with pytest.raises(MemoryError):
        asyncio.run(replica(Request("POST", png(bundled_images(1)[0]))))
    with pytest.raises(RuntimeError, match="a batch failed: MemoryError: no room"):
        replica.check_health()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected classifier=NAME"),
        ({"classifier": "cifar10", "epsilon": "8"}, "unknown: epsilon; known: alpha, batch_wait"),
        ({"classifier": "cifar10", "eps": "8/255"}, "expected an integer as eps, got '8/255'"),
        ({"classifier": "cifar10", "detect": "perhaps"}, "expected detect=1 or detect=0"),
        ({"classifier": "cifar10", "eps": 16.9}, "expected an integer as eps, got 16.9"),
        ({"classifier": "cifar10", "replicas": True}, "expected an integer as replicas, got True"),
        ({"classifier": "cifar10", "replicas": "two"}, "expected an integer as replicas"),
        ({"classifier": "cifar10", "alpha": "small"}, "expected a number as alpha"),
    ],
)
def test_arguments_of_a_configuration_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^(expected|unknown)") as raised:
        deployment.build(arguments)
    assert message in str(raised.value)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(ImportError, match=r"pip install 'pxfast\[ray\]'"):
        deployment.application("cifar10")


def test_a_client_that_dribbles_gives_its_place_up(
    replica: deployment.Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dribbling(Request):
        async def stream(self) -> AsyncIterator[bytes]:
            while True:
                yield b"\x89"
                await asyncio.sleep(0.01)

    monkeypatch.setattr(deployment, "BODY_SECONDS", 0.05)
    answer = asyncio.run(replica(Dribbling("POST")))
    assert answer[1] == 408
