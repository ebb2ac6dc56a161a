"""The score network of ADP: NCSNv2 for small images (Song and Ermon, NeurIPS 2020), used without a noise level.

A pre-activation residual network whose last two stages are dilated instead of smaller, a RefineNet (Lin et al., CVPR
2017) back up to the image's size, InstanceNorm++ (Song and Ermon, NeurIPS 2019, appendix A) and ELU.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_between, check_channels, check_instance, check_size, put
from ..tensors.activations import elu
from ..tensors.modules import ModuleList

MOST_FEATURES = 4096  # far beyond any use; what a file may ask for
SMALLEST_SIDE = 4  # pixels: instance normalisation needs several at half the size


@dataclasses.dataclass(frozen=True)
class ScoreNetworkConfig:
    """image_size: (H, W), of what it is trained on, 4..16384 each. channels: 1 or 3. ngf: features at full size, 2 to
    4096.

    Raises ValueError or TypeError naming the field that is wrong.
    """

    image_size: tuple[int, int]
    channels: int
    ngf: int = 128

    def __post_init__(self) -> None:
        put(
            self,
            image_size=check_size(self.image_size, SMALLEST_SIDE),
            channels=check_channels(self.channels),
            ngf=check_between("ngf", self.ngf, 2, MOST_FEATURES),
        )


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Over the height and width of (N, C, H, W): (N, C) each, the variance without Bessel's correction.

    torch.var_mean goes over the values once, and on a CPU takes several times as long
    (bench/experiments/elementwise.py).
    """
    means = x.mean((2, 3))
    return means, (x - means[:, :, None, None]).square().mean((2, 3))


class InstanceNormPlus(nn.Module):
    """InstanceNorm++: instance normalisation that keeps how the features' means compare with each other.

    Each feature's map gets mean 0 and variance 1, then ``alpha`` times the feature's mean, standardised over the
    features of its image, is added, and the whole is scaled and moved.
    """

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, features: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.alpha: nn.Parameter = nn.Parameter(torch.empty(features).normal_(1.0, 0.02))
        self.gamma: nn.Parameter = nn.Parameter(torch.empty(features).normal_(1.0, 0.02))
        self.beta: nn.Parameter = nn.Parameter(torch.zeros(features))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        means, variances = mean_and_variance(wide)
        spread, centre = torch.var_mean(means, 1, correction=1, keepdim=True)
        relative = (means - centre) * torch.rsqrt(spread + self.epsilon)
        scale = self.gamma * torch.rsqrt(variances + self.epsilon)
        shift = self.gamma * self.alpha * relative + self.beta - means * scale
        return torch.addcmul(shift[:, :, None, None].to(x.dtype), x, scale[:, :, None, None].to(x.dtype))


def _conv3x3(in_features: int, out_features: int, dilation: int = 1, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_features, out_features, 3, padding=dilation, dilation=dilation, bias=bias)


def _halved(x: Tensor) -> Tensor:
    """Means of 2x2 pixels; of an odd side's last row or column, what there is of them."""
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


class ResidualBlock(nn.Module):
    """Twice normalisation, ELU and a 3x3 convolution, beside a shortcut. halve: give half the height and width."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, features: int, out_features: int, dilation: int = 1, *, first: bool, halve: bool) -> None:
        super().__init__()
        middle = features if first else out_features
        self.norm1: InstanceNormPlus = InstanceNormPlus(features)
        self.conv1: nn.Conv2d = _conv3x3(features, middle, dilation)
        self.norm2: InstanceNormPlus = InstanceNormPlus(middle)
        self.conv2: nn.Conv2d = _conv3x3(middle, out_features, dilation)
        # the first block of a stage changes size or dilation, and its shortcut with it
        self.shortcut: nn.Module = nn.Identity()
        if first:
            self.shortcut = (
                nn.Conv2d(features, out_features, 1) if halve else _conv3x3(features, out_features, dilation)
            )
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(elu(self.norm1(x)))
        y = self.conv2(elu(self.norm2(y)))
        y = self.shortcut(x) + y
        return _halved(y) if self.halve else y


class ConvolutionUnits(nn.Module):
    """RefineNet's residual convolution units: each adds two rounds of ELU and a 3x3 convolution."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.units: ModuleList[ModuleList[nn.Conv2d]] = ModuleList(
            ModuleList(_conv3x3(features, features, bias=False) for _ in range(2)) for _ in range(units)
        )

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            y = x
            for conv in unit:
                y = conv(elu(y))
            x = x + y
        return x


class ChainedPooling(nn.Module):
    """RefineNet's chained residual pooling: 5x5 maxima and a 3x3 convolution, twice, each adding what it has found."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, features: int) -> None:
        super().__init__()
        self.convs: ModuleList[nn.Conv2d] = ModuleList(_conv3x3(features, features, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = path = elu(x)
        for conv in self.convs:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            x = x + path
        return x


class RefineBlock(nn.Module):
    """One stage of RefineNet: the residual stage's features, and what the coarser stage made of its own, to one map."""

    if TYPE_CHECKING:

        def __call__(self, *inputs: Tensor) -> Tensor: ...

    def __init__(self, inputs: tuple[int, ...], features: int, *, last: bool = False) -> None:
        super().__init__()
        self.adapt: ModuleList[ConvolutionUnits] = ModuleList(ConvolutionUnits(given, 2) for given in inputs)
        self.fuse: ModuleList[nn.Conv2d] | None = None
        if len(inputs) > 1:
            self.fuse = ModuleList(_conv3x3(given, features) for given in inputs)
        self.pool: ChainedPooling = ChainedPooling(features)
        self.output: ConvolutionUnits = ConvolutionUnits(features, 3 if last else 1)

    def forward(self, *inputs: Tensor) -> Tensor:
        x, *coarser = (adapt(given) for adapt, given in zip(self.adapt, inputs, strict=True))
        if self.fuse is not None:
            size = x.shape[2:]
            x = self.fuse[0](x)
            for conv, given in zip(self.fuse[1:], coarser, strict=True):
                given = conv(given)
                if given.shape[2:] != size:
                    given = F.interpolate(given, size, mode="bilinear", align_corners=True)
                x = x + given
        return self.output(self.pool(x))


class ScoreNetwork(nn.Module):
    """Images (N, C, H, W) to the direction in which they are likelier, of the same shape.

    It is trained by denoising score matching over several noise levels sigma and told none of them: for x = image +
    sigma z it gives about -E[z | x], which is sigma times the score of the noisy images' density. So it has about unit
    size wherever there is noise that it knows, and x + sigma f(x) is the least-squares estimate of the image (Tweedie's
    formula). images: floating, in [0, 1] but for the noise; any height and width of at least 4.
    Raises ValueError for another shape.
    """

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...

    def __init__(self, config: ScoreNetworkConfig) -> None:
        super().__init__()
        self.config: ScoreNetworkConfig = check_instance("config", config, ScoreNetworkConfig)
        n = config.ngf
        self.begin: nn.Conv2d = _conv3x3(config.channels, n)
        self.stages: ModuleList[nn.Sequential] = ModuleList(
            (
                nn.Sequential(*(ResidualBlock(n, n, first=False, halve=False) for _ in range(2))),
                self._stage(n, 2 * n, 1, halve=True),
                self._stage(2 * n, 2 * n, 2, halve=False),
                self._stage(2 * n, 2 * n, 4, halve=False),
            )
        )
        # from the last stage to the first
        self.refine: ModuleList[RefineBlock] = ModuleList(
            (
                RefineBlock((2 * n,), 2 * n),
                RefineBlock((2 * n, 2 * n), 2 * n),
                RefineBlock((2 * n, 2 * n), n),
                RefineBlock((n, n), n, last=True),
            )
        )
        self.norm: InstanceNormPlus = InstanceNormPlus(n)
        self.end: nn.Conv2d = _conv3x3(n, config.channels)

    @staticmethod
    def _stage(features: int, out_features: int, dilation: int, *, halve: bool) -> nn.Sequential:
        return nn.Sequential(
            ResidualBlock(features, out_features, dilation, first=True, halve=halve),
            ResidualBlock(out_features, out_features, dilation, first=False, halve=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        C = self.config.channels
        if images.dim() != 4 or images.shape[1] != C or min(images.shape[2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"expected images (N, {C}, H, W), H and W at least {SMALLEST_SIDE}, got {tuple(images.shape)}"
            )
        x = self.begin((2.0 * images - 1.0).to(memory_format=torch.channels_last))
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        x = self.refine[0](found.pop())
        for refine in self.refine[1:]:
            x = refine(found.pop(), x)
        score: Tensor = self.end(elu(self.norm(x)))
        return score
