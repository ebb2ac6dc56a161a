"""The 256-way heads: p(x[i,j,k] = z | everything before it), z in 0..255.

A head turns the network's output at a pixel, together with the *earlier channels of that pixel*, into
log-probabilities of each sub-pixel. Earlier pixels are already in the features. Every head is normalised: the
256 probabilities of a sub-pixel sum to 1.

Shapes: ``features`` (N, ``head.features``, H, W) floating; ``images`` (N, C, H, W) uint8. All results are in nats.
"""

from __future__ import annotations

import importlib.util
import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_choice
from ..kernels import trust

LEVELS = 256  # values of a sub-pixel
SMALL_WIDTH = 1e-3  # of a bin in units of the scale; under it w^2 / 24 is less than fp32's rounding of 1
FUSED_DEVICES = ("cuda",) if importlib.util.find_spec("triton") else ()  # where pxfast.kernels.mixture runs
_rejected: set[int] = set()  # numbers of GPUs on which the kernel failed its trial
MIN_LOG_SCALE = -7.0  # PixelCNN++ (Salimans et al. 2017): no mixture component is sharper than e^-7


def to_unit(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The network's view of the grid: 0..255 to [-1, 1], (v - 127.5) / 127.5."""
    return (images.to(dtype) - 127.5) / 127.5


def likelihood_is_fused(device: torch.device) -> bool:
    """Whether the kernel of ``pxfast.kernels.mixture`` runs on this device; on a GPU, if it passed its trial there.

    The trial (:mod:`pxfast.kernels.trust`) is held now if it never was; not while torch.compile traces, which takes the
    kernel on trust unless it has failed before.
    """
    if device.type not in FUSED_DEVICES or device.index in _rejected:
        return False
    if device.type == "cuda" and not torch.compiler.is_compiling():
        number = torch.cuda.current_device() if device.index is None else device.index
        problem = trust.problem(trust.LIKELIHOOD, number)
        if problem is not None:
            _rejected.add(number)
            warnings.warn(
                f"likelihoods take plain torch, and more memory: their kernel failed its trial on this GPU: {problem}",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
    return True


class LogisticHead(nn.Module):
    """Mixture of discretised logistics, marginalised per channel (PixelCNN++, section 2.1 and 2.2).

    The features of a pixel are, in PixelCNN++'s order, ``mixtures`` logits, and per channel ``mixtures`` means, log
    scales and (with 3 channels) coefficients. The means of G and B are shifted by the earlier channels of the same
    pixel. The bins are the 256 values; 0 and 255 take the tails.

    bins_per_unit: bins in a unit of the network's view of the grid, which goes from -1 to 1. Here they divide [-1, 1]
    evenly, as in the PixelDefend authors' code.
    """

    name = "logistic"
    bins_per_unit: float = 128.0

    def __init__(self, channels: int, mixtures: int = 10) -> None:
        super().__init__()
        self.channels = channels
        self.mixtures = mixtures
        self.features: int = 10 * mixtures if channels == 3 else 3 * mixtures

    def mixture(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (N, 1 or C, K, H, W), means and log scales (N, C, K, H, W) given the true earlier channels."""
        N, _, H, W = features.shape
        C, K = self.channels, self.mixtures
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        log_weights = F.log_softmax(features[:, :K], dim=1).unsqueeze(1)
        per_channel = features[:, K:].reshape(N, C, -1, H, W)
        means = per_channel[:, :, :K]
        log_scales = per_channel[:, :, K : 2 * K].clamp(min=MIN_LOG_SCALE)
        if C == 3:
            x = to_unit(images, features.dtype).unsqueeze(2)
            coefficients = torch.tanh(per_channel[:, :, 2 * K :])
            red = means[:, 0]
            green = means[:, 1] + coefficients[:, 0] * x[:, 0]
            blue = means[:, 2] + coefficients[:, 1] * x[:, 0] + coefficients[:, 2] * x[:, 1]
            means = torch.stack((red, green, blue), dim=1)
        return log_weights, means, log_scales

    def log_prob(self, features: Tensor, images: Tensor) -> Tensor:
        """Log-probability of every sub-pixel's own value: (N, C, H, W) float32."""
        if images.dtype == torch.uint8 and likelihood_is_fused(features.device):
            from ..kernels import mixture

            joint = isinstance(self, JointLogisticHead)
            found: Tensor = mixture.mixture_log_prob(features, images, self.bins_per_unit, joint)
            return found.float()
        return self.plain_log_prob(features, images)

    def plain_log_prob(self, features: Tensor, images: Tensor) -> Tensor:
        """What ``log_prob`` gives, in plain torch: the twin of ``pxfast.kernels.mixture``; fp64 for fp64 features."""
        log_weights, means, log_scales = self.mixture(features, images)
        log_mass = log_bin_mass(images.unsqueeze(2), means, log_scales, self.bins_per_unit)
        return torch.logsumexp(log_weights + log_mass, dim=2)

    def log_probs(self, features: Tensor, images: Tensor, values: Tensor | None = None) -> Tensor:
        """Log-probabilities of every sub-pixel: (N, C, H, W, 256) float32, of all values, or (N, C, H, W, V).

        values: integers (N, C, H, W, V) in 0..255, of which they are asked; the work is that of V values.
        """
        log_weights, means, log_scales = (t.unsqueeze(-1) for t in self.mixture(features, images))
        values = torch.arange(LEVELS, device=features.device) if values is None else values.unsqueeze(2)
        return torch.logsumexp(log_weights + log_bin_mass(values, means, log_scales, self.bins_per_unit), dim=2)


class JointLogisticHead(LogisticHead):
    """The mixture as PixelCNN++ itself has it, and hence OpenAI's published weights: one component for a whole pixel.

    The features mean what they mean to :class:`LogisticHead`, with two differences. All channels of a pixel come from
    the same component, so that the earlier ones tell which it is: by Bayes' rule p(G | R) is the sum over components i
    of w_i p_i(R) p_i(G | R), divided by that of w_i p_i(R), and so on for B. And value z has the bin of half a step to
    both sides of (z - 127.5) / 127.5, which makes them a little wider.
    """

    name = "pixelcnn++"
    bins_per_unit: float = 127.5

    def mixture(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log scales, (N, C, K, H, W) each, given the true earlier channels.

        The log-weights of a channel are those of the components once the earlier channels are known.
        """
        log_weights, means, log_scales = super().mixture(features, images)
        log_mass = log_bin_mass(images.unsqueeze(2), means, log_scales, self.bins_per_unit)
        earlier = F.pad(log_mass[:, :-1].cumsum(dim=1), (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.log_softmax(log_weights + earlier, dim=2), means, log_scales


def log_bin_mass(values: Tensor, means: Tensor, log_scales: Tensor, bins_per_unit: float) -> Tensor:
    """Log of the logistic mass of the bin of each value 0..255, exact in the tails.

    With n bins per unit, value z has the edges (z - 128) / n and (z - 127) / n. With the edges a < b in units of the
    scale, sigmoid(b) - sigmoid(a) is sigmoid(b) * sigmoid(-a) * (1 - exp(a - b)): no cancellation, hence no need to
    switch to the density where a bin's mass is small.

    Real values are bins, as wide, in between. From 1 to 0 and from 254 to 255 the log of the mass goes over linearly
    into that with the tail, so that it is continuous.
    """
    values = values.to(means.dtype)
    inverse_scales = torch.exp(-log_scales)
    lower = inverse_scales * ((values - 128.0) / bins_per_unit - means)
    width = inverse_scales / bins_per_unit
    below_upper = F.logsigmoid(lower + width)
    above_lower = F.logsigmoid(-lower)
    # log(1 - exp(-w)) is log w - w / 2 + O(w^2) for small w; written so because exp(-log_scales) underflows for a very
    # wide component, which a training step gone astray may make, and then log and its gradient would not be finite
    narrow = torch.log(-torch.expm1(-width.clamp(min=SMALL_WIDTH)))
    wide = -log_scales - math.log(bins_per_unit) - 0.5 * width
    inside = below_upper + above_lower + torch.where(width > SMALL_WIDTH, narrow, wide)
    inside = torch.lerp(above_lower, inside, (LEVELS - 1 - values).clamp(0, 1))  # exact where the weight is 0 or 1
    return torch.lerp(below_upper, inside, values.clamp(0, 1))


class SoftmaxHead(nn.Module):
    """256 free logits per channel (what the PixelDefend paper's text says, Appendix B).

    G is conditioned on R, and B on R and G, by adding a learned row of 256 logits per earlier channel's value:
    ``tables`` (pairs, 256, 256), pairs in the order R->G, R->B, G->B.
    """

    name = "softmax"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.features: int = LEVELS * channels
        self.pairs: list[tuple[int, int]] = [
            (k, j) for k in range(channels) for j in range(k)
        ]  # channel k sees channel j
        self.tables: nn.Parameter = nn.Parameter(torch.zeros(len(self.pairs), LEVELS, LEVELS))

    def log_probs(self, features: Tensor, images: Tensor, values: Tensor | None = None) -> Tensor:
        """Log-probabilities of every sub-pixel: (N, C, H, W, 256) float32, of all values, or (N, C, H, W, V).

        values: integers (N, C, H, W, V) in 0..255, of which they are asked.
        """
        N, _, H, W = features.shape
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        logits = features.reshape(N, self.channels, LEVELS, H, W).permute(0, 1, 3, 4, 2)
        index = images.long()
        per_channel = list(logits.unbind(dim=1))
        for table, (k, j) in zip(self.tables, self.pairs, strict=True):
            per_channel[k] = per_channel[k] + table[index[:, j]]
        found = F.log_softmax(torch.stack(per_channel, dim=1), dim=-1)
        return found if values is None else found.gather(-1, values.long())

    def log_prob(self, features: Tensor, images: Tensor) -> Tensor:
        """Log-probability of every sub-pixel's own value: (N, C, H, W) float32."""
        return self.log_probs(features, images, images.unsqueeze(-1)).squeeze(-1)


Head = LogisticHead | SoftmaxHead
HEADS = (LogisticHead.name, SoftmaxHead.name, JointLogisticHead.name)


def check_head(name: str) -> str:
    """``name`` itself. TypeError or ValueError unless it is one of ``HEADS``."""
    return check_choice("head", name, HEADS)


def make_head(name: str, channels: int, mixtures: int) -> Head:
    """The head called ``name``, one of ``HEADS``. Raises what :func:`check_head` does."""
    if check_head(name) == SoftmaxHead.name:
        return SoftmaxHead(channels)
    return (LogisticHead if name == LogisticHead.name else JointLogisticHead)(channels, mixtures)
