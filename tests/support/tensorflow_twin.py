"""PixelCNN++ once more, in NumPy and TensorFlow's conventions: NHWC, its layouts of weights, its names of variables.

Written apart from pxfast's network, as a walk over the variables in the order of their numbers, to judge the mapping of
a checkpoint onto it. float64 throughout.
"""

from __future__ import annotations

from collections import Counter

import numpy as np


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def concat_elu(x: np.ndarray) -> np.ndarray:
    return elu(np.concatenate((x, -x), axis=3))


def random_variables(
    channels: int, filters: int, resnets: int, mixtures: int, *, scope: str = "model/", seed: int = 0
) -> dict[str, np.ndarray]:
    """Random variables of a network, under their TensorFlow names, made by walking it once."""
    walk = Walk({}, scope, filters, np.random.default_rng(seed))
    walk.run(np.zeros((1, 4, 4, channels), np.uint8), resnets, mixtures)
    return {name: array.astype(np.float32) for name, array in walk.variables.items()}


class Walk:
    """One pass over the network. With a ``generator``, variables are made as the walk meets them.

    trace: (N, H, W, F) after every gated layer, strided and transposed convolution, in the order of computation.
    """

    def __init__(
        self,
        variables: dict[str, np.ndarray],
        scope: str,
        filters: int,
        generator: np.random.Generator | None = None,
    ) -> None:
        self.variables, self.scope, self.filters, self.generator = variables, scope, filters, generator
        self.count: Counter[str] = Counter()
        self.trace: list[np.ndarray] = []

    def layer(self, kind: str, shape: tuple[int, ...], outputs: int) -> tuple[np.ndarray, ...]:
        """V, g and b of the next layer of a kind."""
        prefix = f"{self.scope}{kind}_{self.count[kind]}/"
        self.count[kind] += 1
        if self.generator is not None:
            self.variables[prefix + "V"] = self.generator.normal(size=shape)
            self.variables[prefix + "g"] = self.generator.uniform(0.3, 0.9, size=outputs)
            self.variables[prefix + "b"] = self.generator.normal(scale=0.2, size=outputs)
        V, g, b = (self.variables[prefix + part].astype(np.float64) for part in "Vgb")
        assert V.shape == shape, f"{prefix}V: expected {shape}, got {V.shape}"
        return V, g, b

    def conv2d(self, x: np.ndarray, outputs: int, size: tuple[int, int], padding, stride: int = 1) -> np.ndarray:
        """VALID convolution after zero padding ((top, bottom), (left, right)), weight-normalised over H, W and I."""
        V, g, b = self.layer("conv2d", (*size, x.shape[3], outputs), outputs)
        W = g * V / np.sqrt((V**2).sum(axis=(0, 1, 2)))
        x = np.pad(x, ((0, 0), *padding, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("nijcyx,yxco->nijo", windows, W) + b

    def deconv2d(self, x: np.ndarray, outputs: int, size: tuple[int, int]) -> np.ndarray:
        """VALID transposed convolution of stride 2, weight-normalised over H, W and I; V is HWOI."""
        V, g, b = self.layer("deconv2d", (*size, outputs, x.shape[3]), outputs)
        W = g[:, None] * V / np.sqrt((V**2).sum(axis=(0, 1, 3)))[:, None]
        N, H, width, _ = x.shape
        y = np.zeros((N, 2 * H + size[0] - 1, 2 * width + size[1] - 1, outputs))
        for i in range(H):
            for j in range(width):
                y[:, 2 * i : 2 * i + size[0], 2 * j : 2 * j + size[1]] += np.einsum("nc,yxoc->nyxo", x[:, i, j], W)
        return y + b

    def dense(self, x: np.ndarray, outputs: int) -> np.ndarray:
        V, g, b = self.layer("dense", (x.shape[3], outputs), outputs)
        return (x @ V) * (g / np.sqrt((V**2).sum(axis=0))) + b

    def down_conv(self, x: np.ndarray, outputs: int, size: tuple[int, int] = (2, 3), stride: int = 1) -> np.ndarray:
        side = (size[1] - 1) // 2
        return self.conv2d(x, outputs, size, ((size[0] - 1, 0), (side, side)), stride)

    def down_right_conv(self, x: np.ndarray, outputs: int, size: tuple[int, int] = (2, 2), stride: int = 1):
        return self.conv2d(x, outputs, size, ((size[0] - 1, 0), (size[1] - 1, 0)), stride)

    def gated(self, convolve, x: np.ndarray, *auxiliary: np.ndarray) -> np.ndarray:
        hidden = convolve(concat_elu(x), self.filters)
        if auxiliary:
            hidden = hidden + self.dense(concat_elu(np.concatenate(auxiliary, axis=3)), self.filters)
        a, b = np.split(convolve(concat_elu(hidden), 2 * self.filters), 2, axis=3)
        return self.keep(x + a / (1 + np.exp(-b)))

    def keep(self, x: np.ndarray) -> np.ndarray:
        self.trace.append(x)
        return x

    def run(self, images: np.ndarray, resnets: int, mixtures: int) -> np.ndarray:
        """uint8 (N, H, W, C) to the mixture's parameters (N, H, W, 10 K or 3 K)."""
        F, down, down_right = self.filters, self.down_conv, self.down_right_conv
        x = (images - 127.5) / 127.5
        x = np.concatenate((x, np.ones_like(x[..., :1])), axis=3)

        def row_below(y: np.ndarray) -> np.ndarray:
            return np.concatenate((np.zeros_like(y[:, :1]), y[:, :-1]), axis=1)

        def column_right(y: np.ndarray) -> np.ndarray:
            return np.concatenate((np.zeros_like(y[:, :, :1]), y[:, :, :-1]), axis=2)

        u = [row_below(down(x, F, (2, 3)))]
        ul = [row_below(down(x, F, (1, 3)))]
        ul[0] = ul[0] + column_right(down_right(x, F, (2, 1)))
        for level in range(3):
            for _ in range(resnets):
                u.append(self.gated(down, u[-1]))
                ul.append(self.gated(down_right, ul[-1], u[-1]))
            if level < 2:
                u.append(self.keep(down(u[-1], F, stride=2)))
                ul.append(self.keep(down_right(ul[-1], F, stride=2)))
        top, left = u.pop(), ul.pop()
        for level in range(3):
            for _ in range(resnets + (level > 0)):
                top = self.gated(down, top, u.pop())
                left = self.gated(down_right, left, top, ul.pop())
            if level < 2:
                top = self.keep(self.deconv2d(top, F, (2, 3))[:, :-1, 1:-1])
                left = self.keep(self.deconv2d(left, F, (2, 2))[:, :-1, :-1])
        assert not u
        assert not ul
        return self.dense(elu(left), (10 if images.shape[3] == 3 else 3) * mixtures)
