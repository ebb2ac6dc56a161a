"""The Ray Serve deployment: requests of single images become batches, over several replicas."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..base.checks import check_count, check_number
from ..base.extras import require
from ..base.machine import usable_processors
from ..base.records import shown
from ..base.version import __version__
from ..data.image_decoding import decode_image
from ..data.image_files import write_png
from ..data.images import Array
from ..pixeldefend.detection import Detector
from ..pixeldefend.purify import Purifier
from ..pixeldefend.rules import DEFAULT_EPS
from .batcher import Batcher
from .protected import Answer, Protected

MOST_TIMES = 16  # as many pixels as the images have: an image of more is refused before it is decoded
BODY_SECONDS = 30.0  # that a request's body may take
LARGEST_BODY = 4 << 20  # bytes of a request: an image of a density model has a few kB
TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")


def application(
    classifier: str | os.PathLike[str] | nn.Module,
    *,
    purifier: nn.Module | None = None,
    detector: Detector | None = None,
    image_shape: Sequence[int] | None = None,
    alpha: float = 0.05,
    replicas: int = 1,
    threads: int | None = None,
    max_batch_size: int = 64,
    batch_wait: float = 0.01,
    max_waiting: int = 256,
    gpus: float = 0.0,
) -> Any:
    """A Ray Serve application, for ``ray.serve.run``: ``POST /`` with an image file answers with JSON.

    classifier, purifier, detector, image_shape, alpha: as :class:`Protected` takes them; a name or a path is read by
    each replica. replicas: processes that answer. threads: of each, for PyTorch and, unless the purifier has its own
    number, for the CPU engine; None: the processors of this machine, shared out among the replicas. A replica works on
    one batch at a time, of at most max_batch_size images, and the requests that arrive meanwhile are the next one.
    batch_wait: a batch that is not full begins when so many seconds have passed in which no request came. max_waiting:
    requests that may wait for a replica before others are answered with status 503. gpus: of each replica, a fraction
    to share one; the purifier then has to work on a GPU by itself, and the classifier stays on the processor unless its
    module moves its input.

    A request is the bytes of one image file. It is read as a viewer shows it, or refused: transparency, more than 8
    bits a channel, several frames, and colours other than grey and RGB. With ``?purified=1`` the answer has the
    purified image too, as a PNG in base64. Statuses: 200; 400 for a body that is no image of the classifier's
    shape; 405 for a method but GET and POST; 408 for a body that takes more than 30 seconds; 413 for more than 4 MiB;
    503 where too many wait. ``GET /`` says what is served. Each replica answers an image before it is ready, and is
    replaced when a batch fails for another reason than its images, such as memory.

    Returns a ``ray.serve.Application``. Raises ImportError, which names the extra, without Ray Serve; TypeError or
    ValueError for a wrong option. What :class:`Protected` refuses is refused by ``ray.serve.run``.
    """
    serve = require("ray.serve", "ray")
    replicas = check_count("replicas", replicas, 1)
    if threads is None:
        threads = max(1, usable_processors() // replicas)
    threads = check_count("threads", threads, 1)
    max_batch_size = check_count("max_batch_size", max_batch_size, 1)
    if not isinstance(classifier, (str, os.PathLike, nn.Module)):
        raise TypeError(f"expected a classifier's name, its file or a module, got {shown(classifier)}")
    parts = {"purifier": purifier, "detector": detector, "image_shape": image_shape, "alpha": alpha}
    deployment = serve.deployment(
        Replica,
        name="pxfast",
        num_replicas=replicas,
        # those of a batch at work, and of one that fills up meanwhile
        max_ongoing_requests=2 * max_batch_size,
        max_queued_requests=check_count("max_waiting", max_waiting),
        health_check_period_s=10,
        ray_actor_options={"num_cpus": threads, "num_gpus": check_number("gpus", gpus, 0.0, float("inf"), ends="[)")},
    )
    return deployment.bind(
        classifier, parts, threads, max_batch_size, check_number("batch_wait", batch_wait, 0.0, 60.0)
    )


def build(arguments: Mapping[str, Any]) -> Any:
    """:func:`application` from text, for Ray's own command line and its configuration files.

    ``serve run pxfast.serving:build classifier=cifar10 eps=16 detect=1 replicas=2``: classifier is a shipped one's
    name or a file; model, engine and precision are the purifier's, eps too; detect: 1 for p-values; replicas, threads,
    max_batch_size, max_waiting, batch_wait and alpha as there. Raises TypeError or ValueError for other arguments.
    """
    known = {"classifier", "model", "engine", "precision", "eps", "detect"}
    counts = ("replicas", "threads", "max_batch_size", "max_waiting")
    numbers = ("batch_wait", "alpha")
    if unknown := arguments.keys() - known - set(counts) - set(numbers):
        raise ValueError(
            f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known.union(counts, numbers)))}"
        )
    if "classifier" not in arguments:
        raise ValueError("expected classifier=NAME or classifier=FILE")
    options: dict[str, Any] = {name: _number(name, arguments, int) for name in counts if name in arguments}
    options |= {name: _number(name, arguments, float) for name in numbers if name in arguments}
    detect = str(arguments.get("detect", "1")).lower()
    if detect not in TRUE + FALSE:
        raise ValueError(f"expected detect=1 or detect=0, got {detect!r}")
    engine, precision = arguments.get("engine", "auto"), arguments.get("precision", "auto")
    model = arguments.get("model")
    eps = _number("eps", arguments, int) if "eps" in arguments else DEFAULT_EPS
    return application(
        arguments["classifier"],
        purifier=Purifier(eps, model=model, engine=engine, precision=precision),
        detector=Detector(model) if detect in TRUE else None,
        **options,
    )


def _number(name: str, arguments: Mapping[str, Any], kind: type[Any]) -> Any:
    """An argument as a number, from text, or from a number as YAML has it."""
    given = arguments[name]
    try:
        if isinstance(given, bool) or (kind is int and isinstance(given, float)):
            raise TypeError
        return kind(given)
    except (TypeError, ValueError):
        what = "an integer" if kind is int else "a number"
        raise ValueError(f"expected {what} as {name}, got {arguments[name]!r}") from None


async def _body(request: Any) -> bytes | None:
    """What a request brings; None where that is more than it may be."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            return None
    return body


class Replica:
    """One process of the deployment. Ray makes it; :func:`application` says what it does."""

    def __init__(
        self,
        classifier: str | os.PathLike[str] | nn.Module,
        parts: dict[str, Any],
        threads: int,
        max_batch_size: int,
        batch_wait: float,
    ) -> None:
        torch.set_num_threads(threads)
        purifier = parts["purifier"] or Purifier(threads=threads)
        if isinstance(purifier, Purifier) and purifier.threads is None:
            purifier.threads = threads
        self.protected: Protected = Protected(classifier, **{**parts, "purifier": purifier})
        self.failure: str | None = None
        # in a thread of its own, so that the health check is answered meanwhile; torch keeps the number by thread
        self.batched: Batcher[Array, Answer] = Batcher(
            self._answers, max_batch_size, batch_wait, lambda: torch.set_num_threads(threads)
        )

    def _answers(self, images: list[Array]) -> list[Answer]:
        try:
            return self.protected.answer(np.stack(images))
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise

    async def answer(self, image: Array) -> Answer:
        """The answer about one image, uint8 (C, H, W): what ``handle.answer.remote(image)`` gives other deployments.

        ValueError for another image.
        """
        self.protected.check(image)
        return await self.batched(image)

    def check_health(self) -> None:
        """RuntimeError, upon which Ray replaces this replica, when a batch has failed."""
        if self.failure is not None:
            raise RuntimeError(f"a batch failed: {self.failure}")

    async def __call__(self, request: Any) -> Any:
        """Answer a request of HTTP."""
        from starlette.responses import JSONResponse  # Ray Serve brings it

        if request.method == "GET":
            return self.describe()
        if request.method != "POST":
            return JSONResponse({"error": "expected GET or POST"}, 405, headers={"allow": "GET, POST"})
        wish = request.query_params.get("purified", "0").lower()
        if wish not in TRUE + FALSE:
            return JSONResponse({"error": f"expected purified=1 or purified=0, got {wish!r}"}, 400)
        try:  # a client that dribbles would keep one of few places for ever
            body = await asyncio.wait_for(_body(request), BODY_SECONDS)
        except (asyncio.TimeoutError, TimeoutError):  # two classes before Python 3.11
            return JSONResponse({"error": f"expected an image file within {BODY_SECONDS:g} seconds"}, 408)
        if body is None:
            return JSONResponse({"error": f"expected an image file of at most {LARGEST_BODY} bytes"}, 413)
        try:
            image = decode_image(body, most_pixels=MOST_TIMES * math.prod(self.protected.image_shape[1:]))
            self.protected.check(image)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        answer = await self.answer(image)
        values = answer.to_json()
        if wish in TRUE:
            file = io.BytesIO()
            write_png(answer.purified, file)
            values["purified"] = base64.b64encode(file.getvalue()).decode("ascii")
        return values

    def describe(self) -> dict[str, object]:
        """What is served: the version, the images' shape, the defences and the detector's alpha (None without one)."""
        defended = self.protected.defended
        return {
            "pxfast": __version__,
            "image_shape": list(self.protected.image_shape),
            "classifier": type(defended.classifier).__name__,
            "defences": [repr(defence) for defence in defended.defences],
            "alpha": self.protected.alpha if self.protected.detector is not None else None,
        }
