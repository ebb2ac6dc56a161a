"""The activations against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pxfast.tensors.activations import concat_elu, elu

EDGES = [0.0, -0.0, 1e-38, -1e-38, 1e-8, -1e-8, -1e-4, 88.0, -88.0, 1e30, -1e30, float("inf"), -float("inf")]


def values(dtype: torch.dtype) -> torch.Tensor:
    drawn = torch.randn(2, 7, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn.view(-1)[: len(EDGES)] = torch.tensor(EDGES)
    return drawn.to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-7), (torch.bfloat16, 4e-3)]
)
def test_values_are_those_of_torch(dtype: torch.dtype, tolerance: float) -> None:
    x = values(dtype)
    for ours, exact in ((elu(x), F.elu(x.double())), (concat_elu(x), F.elu(torch.cat((x, -x), 1).double()))):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


@given(st.floats(width=32, allow_nan=False))
def test_every_number(x: float) -> None:
    one = torch.full((1, 1, 1, 1), x)
    exact = F.elu(torch.tensor([x, -x], dtype=torch.float64))
    torch.testing.assert_close(concat_elu(one).flatten().double(), exact, rtol=1e-6, atol=1.2e-7)
    torch.testing.assert_close(elu(one).double().flatten(), exact[:1], rtol=1e-6, atol=1.2e-7)


def test_not_a_number_stays_one() -> None:
    x = torch.full((1, 1, 1, 1), float("nan"))
    assert elu(x).isnan().all()
    assert concat_elu(x).isnan().all()


def test_gradients() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(elu, x)
    assert torch.autograd.gradcheck(concat_elu, x)
    assert torch.autograd.gradgradcheck(concat_elu, x)


@pytest.mark.parametrize("function", [elu, concat_elu])
def test_memory_layout_stays(function) -> None:
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert function(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_part_of_a_map_gives_the_layout_that_torch_gives(layout) -> None:
    """A transposed convolution's outputs are cut: in another layout the next convolution would be slower."""
    whole = torch.randn(2, 3, 5, 6).contiguous(memory_format=layout)
    for x in (whole[:, :, 1:, :-2], whole[:, :, :2, :3], whole[:1], whole[:0]):
        assert concat_elu(x).stride() == torch.cat((x.abs(), x.abs()), dim=1).stride()
