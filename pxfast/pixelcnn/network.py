"""PixelCNN++ (Salimans et al. 2017) as the PixelDefend authors used it, teacher-forced over whole images.

Two streams of features per pixel: the *vertical* one sees every row above, the *horizontal* one the vertical one and
the pixels to the left. Three resolution levels with strides 1, 2 and 4; ``resnets`` gated residual layers a level on
the way down and ``resnets``, ``resnets + 1``, ``resnets + 1`` on the way up, joined by skip connections.

Everything else in pxfast is judged by this network: it is the oracle of every decode engine.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..base.checks import check_between, check_channels, check_instance, check_number, check_size, notes_json, put
from ..base.files import whole_file
from ..tensors.activations import concat_elu, elu
from ..tensors.ambient import in_plain_torch
from ..tensors.modules import ModuleList
from ..tensors.pretrained import UNNAMED, Pretrained
from ..tensors.safetensors import load_network, metadata_record, read_header, read_notes
from .card import model_card
from .heads import LEVELS, Head, check_head, make_head, to_unit

FORMAT = "pxfast-pixelcnn"  # of its files
NUM_LEVELS = 3
VARIANCE_EPSILON = 1e-10  # of the data-dependent initialisation; features are of about unit size
MOST = {"filters": 4096, "resnets": 100, "mixtures": 1000}  # far beyond any use; what a file may ask for


@dataclasses.dataclass(frozen=True)
class PixelCNNConfig:
    """What a PixelCNN is, apart from its weights.

    image_size: (H, W), each a positive multiple of 4, at most 16384. channels: 1 or 3. filters: features per stream, at
    most 4096. resnets: gated layers per level, at most 100. mixtures: components of a logistic head, at most 1000.
    head: 'logistic', as the PixelDefend authors have it, 'softmax', or 'pixelcnn++', as OpenAI's published weights have
    it (see pxfast/pixelcnn/heads.py). dropout: probability of dropping a feature inside a gated layer, in training
    only.
    Raises ValueError or TypeError naming the field that is wrong.
    """

    image_size: tuple[int, int]
    channels: int
    filters: int
    resnets: int
    mixtures: int = 10
    head: str = "logistic"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        put(
            self,
            image_size=check_size(self.image_size, 4, 4),
            channels=check_channels(self.channels),
            **{field: check_between(field, getattr(self, field), 1, most) for field, most in MOST.items()},
            head=check_head(self.head),
            dropout=check_number("dropout", self.dropout, 0.0, 1.0, ends="[)"),
        )

    @property
    def layers(self) -> int:
        """How many convolutions the gated layers have at least."""
        return 2 * 2 * (2 * NUM_LEVELS * self.resnets + NUM_LEVELS - 1)


def down_shift(x: Tensor) -> Tensor:
    """Each row sees the row above; the first row sees zeros."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def right_shift(x: Tensor) -> Tensor:
    """Each column sees the column to its left; the first column sees zeros."""
    return F.pad(x, (1, 0))[:, :, :, :-1]


class WeightNormConv(nn.Module):
    """Convolution with weight normalisation, W = g v / |v| per output channel, and causal placement.

    The kernel's window ends at the current row. Horizontally it is centred (``down``: sees the row at both sides) or
    ends at the current column (``down_right``). ``stride`` 2 halves the size; ``transposed`` doubles it instead.

    v: (out, in, kh, kw), or (in, out, kh, kw) when transposed, as PyTorch's convolutions have it; g, b: (out,).
    """

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: tuple[int, int],
        *,
        centred: bool = False,
        stride: int = 1,
        transposed: bool = False,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.kernel = kernel
        self.centred = centred
        self.stride = stride
        self.transposed = transposed
        self.init_scale = init_scale
        shape = (in_features, out_features) if transposed else (out_features, in_features)
        self.v: nn.Parameter = nn.Parameter(torch.randn(*shape, *kernel) * 0.05)
        self.g: nn.Parameter = nn.Parameter(torch.ones(out_features))
        self.b: nn.Parameter = nn.Parameter(torch.zeros(out_features))
        self.initialising = False
        self.folded: tuple[Tensor, Tensor] | None = None  # weight and bias, where training folds all at once

    def weight(self) -> Tensor:
        """The folded weight, in the layout of ``v``."""
        dim = 1 if self.transposed else 0
        shape = [1, 1, 1, 1]
        shape[dim] = -1
        return torch._weight_norm(self.v, self.g.reshape(shape), dim)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Make ``weight``, in the layout of ``v``, the folded weight; filters of zeros get some direction."""
        self.v.copy_(weight)
        v = self.v.contiguous()  # in one order of summation, whatever the memory format
        self.g.copy_(torch.linalg.vector_norm(v, dim=(0, 2, 3) if self.transposed else (1, 2, 3)))
        by_output = self.v.transpose(0, 1) if self.transposed else self.v
        by_output[self.g == 0.0] = 1.0  # v / |v| would not be a number

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kh, kw = self.kernel
        if self.transposed:  # every input reaches a kernel's worth of outputs; keep the causal 2H x 2W of them
            H, W = x.shape[2:]
            full = F.conv_transpose2d(x, weight, bias, stride=2, output_padding=(0, 1 if self.centred else 0))
            left = (kw - 1) // 2 if self.centred else 0
            return full[:, :, : 2 * H, left : left + 2 * W]
        if kh > 1 or kw > 1:
            left, right = ((kw - 1) // 2, (kw - 1) // 2) if self.centred else (kw - 1, 0)
            x = F.pad(x, (left, right, kh - 1, 0))
        return F.conv2d(x, weight, bias, stride=self.stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.initialising:
            self.initialise_from(x)
        weight, bias = self.folded or (self.weight(), self.b)
        return self.convolve(x, weight, bias)

    @torch.no_grad()
    def initialise_from(self, x: Tensor) -> None:
        """Data-dependent initialisation (Salimans and Kingma 2016): outputs of mean 0, deviation ``init_scale``.

        An output that is the same everywhere in all images keeps its filter of length ``init_scale``.
        """
        self.g.fill_(1.0)
        y = self.convolve(x, self.weight(), None)
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
        # a coarsest level of one pixel sees nothing of the image: what varies there is rounding, not to be magnified
        constant = variance <= VARIANCE_EPSILON
        self.g.copy_(self.init_scale * torch.rsqrt(variance + VARIANCE_EPSILON).masked_fill(constant, 1.0))
        self.b.copy_(-mean * self.g)


def down_conv(i: int, o: int, kernel: tuple[int, int] = (2, 3), **kwargs: Any) -> WeightNormConv:
    """A convolution of the vertical stream: sees its own row and those above, at both sides."""
    return WeightNormConv(i, o, kernel, centred=True, **kwargs)


def down_right_conv(i: int, o: int, kernel: tuple[int, int] = (2, 2), **kwargs: Any) -> WeightNormConv:
    """A convolution of the horizontal stream: sees nothing to the right."""
    return WeightNormConv(i, o, kernel, **kwargs)


class GatedResnet(nn.Module):
    """x + a * sigmoid(b), (a, b) = conv(concat_elu(conv(concat_elu(x)) + skip)): PixelCNN++'s residual layer.

    ``auxiliary`` features enter by a 1x1 convolution of their concat-ELU (0: none).
    """

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, auxiliary: Tensor | None = None) -> Tensor: ...

    def __init__(self, conv: Callable[..., WeightNormConv], filters: int, auxiliary: int, dropout: float) -> None:
        super().__init__()
        self.conv_in: WeightNormConv = conv(2 * filters, filters)
        self.skip: WeightNormConv | None = down_right_conv(2 * auxiliary, filters, (1, 1)) if auxiliary else None
        self.conv_out: WeightNormConv = conv(2 * filters, 2 * filters, init_scale=0.1)
        self.dropout: nn.Dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, auxiliary: Tensor | None = None) -> Tensor:
        hidden = self.conv_in(concat_elu(x))
        if self.skip is not None:
            assert auxiliary is not None
            hidden = hidden + self.skip(concat_elu(auxiliary))
        hidden = self.conv_out(self.dropout(concat_elu(hidden)))
        return x + F.glu(hidden, dim=1)


class LayerPair(nn.Module):
    """One vertical and one horizontal gated layer; on the way up both also take a skip connection."""

    def __init__(self, filters: int, dropout: float, *, up: bool) -> None:
        super().__init__()
        self.vertical: GatedResnet = GatedResnet(down_conv, filters, filters if up else 0, dropout)
        self.horizontal: GatedResnet = GatedResnet(down_right_conv, filters, 2 * filters if up else filters, dropout)


class Resize(nn.Module):
    """Both streams to half (strided) or double (transposed) size."""

    def __init__(self, filters: int, *, transposed: bool) -> None:
        super().__init__()
        self.vertical: WeightNormConv = down_conv(filters, filters, stride=2, transposed=transposed)
        self.horizontal: WeightNormConv = down_right_conv(filters, filters, stride=2, transposed=transposed)


class PixelCNN(Pretrained):
    """The density model p(X) over uint8 images (N, C, H, W), with random weights.

    config: its size and head.

    ``forward`` gives the head's parameters; ``log_prob`` log p(X) per sub-pixel; ``log_probs`` all 256 of them.
    """

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...

    def __init__(self, config: PixelCNNConfig) -> None:
        super().__init__()
        self.config: PixelCNNConfig = check_instance("config", config, PixelCNNConfig)
        f, r, dropout = config.filters, config.resnets, config.dropout
        inputs = config.channels + 1  # a channel of ones marks the inside of the image against the zero padding
        self.input_vertical: WeightNormConv = down_conv(inputs, f, (2, 3))
        self.input_above: WeightNormConv = down_conv(inputs, f, (1, 3))
        self.input_left: WeightNormConv = down_right_conv(inputs, f, (2, 1))

        def layers(count: int, up: bool) -> ModuleList[LayerPair]:
            return ModuleList(LayerPair(f, dropout, up=up) for _ in range(count))

        self.down: ModuleList[ModuleList[LayerPair]] = ModuleList(layers(r, up=False) for _ in range(NUM_LEVELS))
        self.downsample: ModuleList[Resize] = ModuleList(Resize(f, transposed=False) for _ in range(NUM_LEVELS - 1))
        # the way up is listed in the order of computation: coarsest level first
        self.up: ModuleList[ModuleList[LayerPair]] = ModuleList(
            layers(r if i == 0 else r + 1, up=True) for i in range(NUM_LEVELS)
        )
        self.upsample: ModuleList[Resize] = ModuleList(Resize(f, transposed=True) for _ in range(NUM_LEVELS - 1))
        self.head: Head = make_head(config.head, config.channels, config.mixtures)
        self.output: WeightNormConv = down_right_conv(f, self.head.features, (1, 1), init_scale=0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Parameters of the head at every pixel: uint8 (N, C, H, W) to (N, head.features, H, W)."""
        x = to_unit(images, self.output.v.dtype)
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0).to(memory_format=torch.channels_last)
        vertical = down_shift(self.input_vertical(x))
        horizontal = down_shift(self.input_above(x)) + right_shift(self.input_left(x))
        skips = [(vertical, horizontal)]
        for level, pairs in enumerate(self.down):
            if level > 0:
                resize = self.downsample[level - 1]
                vertical, horizontal = resize.vertical(vertical), resize.horizontal(horizontal)
                skips.append((vertical, horizontal))
            for pair in pairs:
                vertical = pair.vertical(vertical)
                horizontal = pair.horizontal(horizontal, vertical)
                skips.append((vertical, horizontal))
        vertical, horizontal = skips.pop()
        for step, pairs in enumerate(self.up):
            if step > 0:
                resize = self.upsample[step - 1]
                vertical, horizontal = resize.vertical(vertical), resize.horizontal(horizontal)
            for pair in pairs:
                skip_vertical, skip_horizontal = skips.pop()
                vertical = pair.vertical(vertical, skip_vertical)
                horizontal = pair.horizontal(horizontal, torch.cat((vertical, skip_horizontal), dim=1))
        assert not skips
        return self.output(elu(horizontal))

    def log_prob(self, images: Tensor) -> Tensor:
        """log p(x[i,j,k] | earlier) in nats of every sub-pixel of uint8 images (N, C, H, W): (N, C, H, W)."""
        return self.head.log_prob(self(images), images)

    def log_probs(self, images: Tensor) -> Tensor:
        """All 256 conditional log-probabilities in nats: (N, C, H, W, 256). 256 times the memory of ``log_prob``."""
        return self.head.log_probs(self(images), images)

    def convolutions(self) -> Iterator[tuple[str, WeightNormConv]]:
        """Every convolution with its name."""
        for name, module in self.named_modules():
            if isinstance(module, WeightNormConv):
                yield name, module

    def stored_tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of a model file: per convolution the folded weight and the bias, and the head's own parameters.

        dtype: of the weights; biases are fp32. Folding loses nothing: weight normalisation is rebuilt as v = weight,
        g = |weight|.
        """
        tensors = {}
        for name, convolution in self.convolutions():
            tensors[f"{name}.weight"] = convolution.weight().detach().to(dtype)
            tensors[f"{name}.bias"] = convolution.b.detach().float()
        for name, parameter in self.head.named_parameters():
            tensors[f"head.{name}"] = parameter.detach().to(dtype)
        return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}

    @torch.no_grad()
    def round_as_stored(self, dtype: torch.dtype) -> None:
        """Make the weights those that a model file of this ``dtype`` gives back."""
        for _, convolution in self.convolutions():
            convolution.set_weight(convolution.weight().to(dtype))
        for parameter in self.head.parameters():
            parameter.copy_(parameter.to(dtype))

    def file_tensors(self) -> dict[str, Tensor]:
        """The parameters that take a model file's tensors, by the names that these have there; v takes the weight."""
        targets: dict[str, Tensor] = {}
        for name, convolution in self.convolutions():
            targets[f"{name}.weight"] = convolution.v
            targets[f"{name}.bias"] = convolution.b
        for name, parameter in self.head.named_parameters():
            targets[f"head.{name}"] = parameter
        return targets

    def write_file(
        self, path: str | os.PathLike[str], *, notes: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """Write a model file, with the arguments of :func:`pxfast.save`, which checks them."""
        config = json.dumps(dataclasses.asdict(self.config))
        metadata = {"format": FORMAT, "config": config, "notes": notes_json(dict(notes))}
        with whole_file(path) as temporary:
            save_file(self.stored_tensors(dtype), temporary, metadata=metadata)

    @classmethod
    @in_plain_torch
    @torch.no_grad()
    def read_file(cls, path: str | os.PathLike[str]) -> PixelCNN:
        """A model file's network: see :func:`pxfast.load`, which takes a ``path`` as well."""
        header = read_header(path, FORMAT)
        config = metadata_record(PixelCNNConfig, header.metadata, path, "model configuration")
        notes = read_notes(header.metadata, path)
        model = load_network(header, config.layers, lambda: cls(config), cls.file_tensors)
        for _, convolution in model.convolutions():
            convolution.set_weight(convolution.v)
        model.notes = notes
        return model.eval()

    def described(self) -> dict[str, Any]:
        """What a folder's config.json says of it."""
        return {"format": FORMAT, "config": dataclasses.asdict(self.config)}

    def model_card(self, notes: Mapping[str, Any], name: str = UNNAMED) -> str:
        """A folder's README.md: see :meth:`save_pretrained` for the notes. name: of the repository on the Hub."""
        return model_card(self.config, sum(tensor.numel() for tensor in self.file_tensors().values()), notes, name)

    @torch.no_grad()
    def initialise(self, images: Tensor) -> None:
        """Data-dependent initialisation of g and b from one batch of uint8 training images (N, C, H, W).

        Every convolution's outputs get mean 0 and deviation ``init_scale`` over the batch (Salimans and Kingma 2016).
        """
        convolutions = [module for _, module in self.convolutions()]
        for module in convolutions:
            module.initialising = True
        try:
            self(images)
        finally:
            for module in convolutions:
                module.initialising = False


def forward_flops(config: PixelCNNConfig) -> int:
    """Floating-point operations (2 per multiply-add) of all convolutions in one teacher-forced pass over one image."""
    with torch.device("meta"):
        model = PixelCNN(config)
    H, W = config.image_size
    level_of = {}
    for level in range(NUM_LEVELS):
        level_of[f"down.{level}."] = level
        level_of[f"up.{level}."] = NUM_LEVELS - 1 - level
    for step in range(NUM_LEVELS - 1):
        level_of[f"downsample.{step}."] = step + 1  # counted where it writes
        level_of[f"upsample.{step}."] = NUM_LEVELS - 1 - step  # and where it reads, when transposed
    total = 0
    for name, module in model.convolutions():
        level = next((level for prefix, level in level_of.items() if name.startswith(prefix)), 0)
        total += 2 * module.v.numel() * (H >> level) * (W >> level)
    return total


__all__ = ["LEVELS", "PixelCNN", "PixelCNNConfig", "concat_elu", "forward_flops"]
