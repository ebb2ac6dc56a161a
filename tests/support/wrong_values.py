"""Wrong values of an argument, by what it should be, each with its exception and words of the message.

And what the calls that refuse them need besides: small images and networks.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from support.helpers import random_model

from pxfast import PixelCNN
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.classifiers import Classifier, ResNetConfig, build

IMAGES = torch.full((2, 1, 8, 8), 100, dtype=torch.uint8)
UNIT = IMAGES / 255


class Wrong(NamedTuple):
    """A value that is refused, with what, and a pattern of the message, in which NAME is the argument's name."""

    value: object
    error: type[Exception]
    words: str = "NAME must be"


class Kind(NamedTuple):
    """What an argument may be: wrong values of it, and right ones with what they are kept as."""

    wrong: tuple[Wrong, ...]
    right: tuple[tuple[object, object], ...] = ()


def refused(error: type[Exception], *values: object, words: str = "NAME must be") -> tuple[Wrong, ...]:
    return tuple(Wrong(value, error, words) for value in values)


NO_INTEGERS = refused(TypeError, 1.0, 1.5, True, np.bool_(True), "1", math.nan, [1], np.array([1]), torch.tensor(1.0))
NO_NUMBERS = refused(TypeError, "1", True, 1j, [1.0], np.array([0.5]))
NO_TEXTS = refused(TypeError, 3, True, ["cpu"], b"fp32")
NONE = refused(TypeError, None)


def count(least: int = 0, *, optional: bool = False, most: int | None = None) -> Kind:
    """An integer of at least ``least``, whichever library's."""
    outside = [least - 1, -(10**30), *([] if most is None else [most + 1, 10**30])]
    right = least + 1
    return Kind(
        (*NO_INTEGERS, *refused(ValueError, *outside), *(() if optional else NONE)),
        tuple((made(right), right) for made in (np.int64, np.uint8, np.array, torch.tensor)),
    )


def number(
    low: float = 0.0, high: float = math.inf, *, ends: str = "[]", optional: bool = False, right: float = 0.5
) -> Kind:
    """A number in an interval, whose round ``ends`` do not belong to it."""
    outside = [math.nan, math.inf, -math.inf, low - 1.0, 10**400, *([high + 1.0] if math.isfinite(high) else [])]
    outside += [end for end, bracket in ((low, ends[0]), (high, ends[1])) if bracket in "()" and math.isfinite(end)]
    return Kind(
        (*NO_NUMBERS, *refused(ValueError, *outside), *(() if optional else NONE)),
        ((np.float32(right), right), (np.float64(right), right)),
    )


def choice(*, optional: bool = False, words: str = "NAME must be", unknown: str = "other") -> Kind:
    """One of some texts."""
    return Kind((*NO_TEXTS, *refused(ValueError, unknown, "", words=words), *(() if optional else NONE)))


def named(what: str, words: str) -> Kind:
    """A name, of which there are some; ``what`` a message calls it where it is no text."""
    return Kind((*refused(TypeError, 3, None, ["a"], words=what), *refused(ValueError, "other", words=words)))


FLAG = Kind(refused(TypeError, 1, 0, "yes", None, [True]), ((np.bool_(True), True),))
PROGRESS = Kind(refused(TypeError, 1, 0, "yes", None))
EPS = count(most=255)
SEED = count(most=2**63 - 1)
ENGINE = Kind((*NO_TEXTS, *NONE, *refused(ValueError, "abacus", "", words="unknown engine")))
PRECISION = choice(unknown="fp64")
THREADS = count(1, optional=True, most=2**16)
MODEL = Kind(
    (
        *refused(TypeError, 3, b"cifar10", ["cifar10"], torch.nn.Linear(1, 1)),
        *refused(ValueError, "cifar11", "", words="unknown (model|score network)"),
        *refused(FileNotFoundError, "there/is/no.safetensors", words="no such file: there/is/no.safetensors"),
    )
)
PATH = Kind(refused(TypeError, 3, None, b"out", ["out"]))


def assert_refused(call: Callable[[], object], wrong: Wrong, name: str) -> None:
    """A call is refused as ``wrong`` says, by a message that is no longer than a few lines."""
    shown = f"{name}={str(wrong.value)[:80]}"
    error: Exception | None = None
    try:
        call()
    except Exception as refusal:
        error = refusal
    assert error is not None, f"{shown} is accepted"
    assert type(error) is wrong.error, f"{shown}: {error!r}"
    assert re.search(wrong.words.replace("NAME", name), str(error)), f"{shown}: {error!r}"
    assert len(str(error)) < 500, f"{shown}: {error!r}"


@functools.cache
def tiny() -> PixelCNN:
    """A density model of 8x8 images of one channel. Don't change it."""
    return random_model()


@functools.cache
def scorer() -> ScoreNetwork:
    """A score network of such images."""
    return ScoreNetwork(ScoreNetworkConfig((8, 8), 1, 2))


@functools.cache
def classifier() -> Classifier:
    """A classifier of such images, of ten classes."""
    return build(ResNetConfig((8, 8), 1, (2, 2, 2), units=1)).eval()
