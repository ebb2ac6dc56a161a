"""Muon: momentum, orthogonalised, for the convolutions of a network.

Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024. A gradient of a weight matrix is mostly
a few strong directions; Muon takes the momentum M = U S V^T and steps along U V^T, in which all directions are equally
strong. Here the matrices are the directions ``v`` of weight-normalised convolutions, one row per output. (torch has an
optimiser of this name from 2.9 on, for parameters of two dimensions.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..network import PixelCNN

MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
# of the quintic a x + b x^3 + c x^5 that brings singular values in (0, 1] close to 1 in five steps (Jordan et al.)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T of (N, rows, columns): singular values become 0.7 to 1.2, but for tiny ones.

    Newton-Schulz iterations in the dtype of ``matrices``: matrix products alone, no decomposition. A zero matrix stays
    zero.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]  # the products are with the smaller of the two Gram matrices
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-30)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def split_parameters(model: PixelCNN) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """Groups of parameters for :class:`Muon`, and the other parameters of the network.

    Muon's are the ``v`` of all convolutions but those that see the image, whose matrices have a handful of columns.
    """
    plain: list[nn.Parameter] = []
    transposed: list[nn.Parameter] = []
    for name, convolution in model.convolutions():
        if not name.startswith("input_"):
            (transposed if convolution.transposed else plain).append(convolution.v)
    chosen = {id(parameter) for parameter in (*plain, *transposed)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [{"params": plain, "output_dim": 0}, {"params": transposed, "output_dim": 1}], rest


def by_output(kernel: Tensor, output_dim: int) -> Tensor:
    """A view (outputs, kh, kw, inputs) of a convolution's kernel whose outputs are dimension ``output_dim``, 0 or 1."""
    return kernel.movedim(output_dim, 0).movedim(1, -1)


class Muon(torch.optim.Optimizer):
    """Turns every row of a convolution's ``v`` along the orthogonalised momentum of the convolution.

    The length of a row has no effect on a weight-normalised convolution, and is kept. A step turns the rows by about
    ``lr`` radians in the root mean square over the convolution's rows.

    parameters: groups with their ``output_dim``, as :func:`split_parameters` gives them. dtype: of the
    orthogonalisation; torch.bfloat16 is what the paper uses. The momentum is in the state, in the parameter's dtype.
    """

    state_names: tuple[str, ...] = ("momentum",)  # what a checkpoint has of a parameter

    def __init__(self, parameters: Iterable[dict[str, Any]], lr: float, *, dtype: torch.dtype = torch.float32) -> None:
        if not lr > 0.0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.dtype = dtype
        super().__init__(parameters, {"lr": lr})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step along the gradients; parameters without one stay. ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step(parameters, group["output_dim"], group["lr"])
        return None

    def _step(self, parameters: list[nn.Parameter], output_dim: int, lr: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            momenta.append(state["momentum"])
        torch._foreach_lerp_(momenta, gradients, 1.0 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        alike: dict[torch.Size, list[int]] = {}
        for i, parameter in enumerate(parameters):
            alike.setdefault(parameter.shape, []).append(i)
        targets: list[Tensor] = []
        turned: list[Tensor] = []
        for places in alike.values():  # equal shapes in one batch of matrix products
            kernels = [by_output(parameters[i], output_dim) for i in places]
            v = torch.stack(kernels)
            directions = torch.stack([by_output(ahead[i], output_dim) for i in places])
            targets += kernels
            turned += _turned(v.flatten(2), directions.flatten(2).to(self.dtype), lr).reshape(v.shape).unbind()
        torch._foreach_copy_(targets, turned)


def _turned(v: Tensor, momenta: Tensor, lr: float) -> Tensor:
    """The rows of matrices ``v`` (N, rows, columns), turned along their orthogonalised ``momenta``."""
    directions = orthogonalise(momenta).float()
    size = torch.linalg.vector_norm(directions, dim=(1, 2), keepdim=True).clamp(min=1e-30)
    directions = directions * (math.sqrt(directions.shape[1]) / size)  # rows of length 1 in the mean square
    lengths = torch.linalg.vector_norm(v, dim=2, keepdim=True)
    turned: Tensor = v - lr * lengths * directions
    turned *= lengths / torch.linalg.vector_norm(turned, dim=2, keepdim=True).clamp(min=1e-30)
    return turned
