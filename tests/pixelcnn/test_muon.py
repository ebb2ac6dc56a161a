"""Muon: the orthogonalisation, and its step against a plain one, matrix by matrix."""

import math

import pytest
import torch
from support.helpers import random_model

from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixelcnn.training.muon import MOMENTUM, Muon, by_output, orthogonalise, split_parameters


@pytest.mark.parametrize("shape", [(3, 12, 40), (2, 40, 12), (1, 16, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one_and_the_same_directions(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    matrices *= torch.logspace(0, 3, shape[2])  # singular values over some orders of magnitude
    found = orthogonalise(matrices)
    U, S, Vh = torch.linalg.svd(matrices, full_matrices=False)
    between = U.mT @ found @ Vh.mT  # the found matrix from the left singular vectors to the right ones: diagonal
    diagonal = torch.diagonal(between, dim1=1, dim2=2)
    torch.testing.assert_close(between, torch.diag_embed(diagonal), atol=1e-3, rtol=0)
    strong = S / S[:, :1] > 0.01
    assert strong.sum() > shape[0]
    assert (diagonal[strong] > 0.6).all()
    assert (diagonal < 1.3).all()
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))


def plain_step(v, gradient, momentum, lr, transposed):
    """Muon's step for one convolution, written for reading: the new v and momentum."""
    momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
    ahead = (1 - MOMENTUM) * gradient + MOMENTUM * momentum
    matrix, rows = (
        (kernel.transpose(0, 1) if transposed else kernel).reshape(kernel.shape[1 if transposed else 0], -1)
        for kernel in (ahead, v)
    )
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    x = x * math.sqrt(len(x)) / x.norm()
    length = rows.norm(dim=1, keepdim=True)
    turned = rows - lr * length * x
    turned = turned / turned.norm(dim=1, keepdim=True) * length
    if transposed:
        return turned.reshape(v.transpose(0, 1).shape).transpose(0, 1), momentum
    return turned.reshape(v.shape), momentum


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_step_is_that_of_a_plain_twin(memory_format):
    model = random_model(filters=6, channels=3).to(memory_format=memory_format)
    groups, rest = split_parameters(model)
    muon = Muon(groups, 0.1)
    twins = {
        name: (convolution, convolution.v.detach().clone(), torch.zeros_like(convolution.v))
        for name, convolution in model.convolutions()
        if not name.startswith("input_")
    }
    assert len(groups[0]["params"]) + len(groups[1]["params"]) == len(twins)
    assert len(groups[1]["params"]) == 4
    assert len(rest) == len(list(model.parameters())) - len(twins)
    others = [parameter.detach().clone() for parameter in rest]
    for step in range(3):
        for n, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(1000 * step + n)
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.to(memory_format=memory_format) if gradient.dim() == 4 else gradient
        muon.step()
        for name, (convolution, v, momentum) in twins.items():
            v, momentum = plain_step(v, convolution.v.grad, momentum, 0.1, convolution.transposed)
            twins[name] = (convolution, v, momentum)
            torch.testing.assert_close(convolution.v.detach(), v, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(muon.state[convolution.v]["momentum"], momentum)
    for parameter, before in zip(rest, others, strict=True):
        assert torch.equal(parameter, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_keep_their_length_and_turn_by_the_learning_rate(dtype):
    model = random_model(filters=6)
    groups, _ = split_parameters(model)
    before = {name: c.v.detach().clone() for name, c in model.convolutions()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 4:  # a weight-normalised convolution's is orthogonal to the rows, so that nothing is lost
            gradient -= parameter.detach() * (gradient * parameter).sum() / parameter.detach().square().sum()
        parameter.grad = gradient
    Muon(groups, 0.01, dtype=dtype).step()
    for name, convolution in model.convolutions():
        if name.startswith("input_"):
            assert torch.equal(convolution.v, before[name])
            continue
        dim = 1 if convolution.transposed else 0
        old, new = (by_output(kernel, dim).flatten(1) for kernel in (before[name], convolution.v.detach()))
        torch.testing.assert_close(new.norm(dim=1), old.norm(dim=1))
        turned = (new - old).norm(dim=1) / old.norm(dim=1)
        assert turned.square().mean().sqrt() == pytest.approx(0.01, rel=0.15)


def test_a_parameter_without_gradient_stays_and_has_no_state():
    model: PixelCNN = random_model(filters=4)
    groups, _ = split_parameters(model)
    muon = Muon(groups, 0.1)
    before = model.output.v.detach().clone()
    muon.step()
    assert torch.equal(model.output.v, before)
    assert not muon.state


def test_bad_arguments_are_told():
    groups, _ = split_parameters(random_model(filters=4))
    with pytest.raises(ValueError, match=r"lr must be positive, got 0\.0"):
        Muon(groups, 0.0)
    with pytest.raises(ValueError, match="takes no closure"):
        Muon(groups, 0.1).step(lambda: 0.0)
