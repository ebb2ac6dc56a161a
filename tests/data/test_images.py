"""What users pass becomes the grid and goes back as it came; what can't is refused with a reason."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pxfast.data.images import ImageForm, check_range, to_grid, widest

GRID = torch.arange(256, dtype=torch.uint8).reshape(2, 2, 8, 8)
TORCH_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def grid_of(images):
    return to_grid(images)[0]


@pytest.mark.parametrize("dtype", TORCH_FLOATS)
def test_every_grid_value_survives_every_float_type(dtype):
    images = (GRID.double() / 255).to(dtype)
    grid, form = to_grid(images)
    assert torch.equal(grid, GRID)
    back = form.images(grid)
    assert back.dtype == dtype
    assert torch.equal(back, images)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", ">f4"])
def test_numpy_types(dtype):
    values = GRID.numpy() if dtype == "uint8" else GRID.numpy() / 255
    images = values.astype(dtype)
    grid, form = to_grid(images)
    assert torch.equal(grid, GRID)
    back = form.images(grid)
    assert isinstance(back, np.ndarray)
    assert back.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(back, images)


@given(
    batch=st.one_of(st.none(), st.integers(0, 3)),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    dtype=st.sampled_from([torch.uint8, *TORCH_FLOATS]),
    numpy=st.booleans(),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_form_is_kept(batch, channels, size, dtype, numpy, layout):
    shape = (channels, *size) if batch is None else (batch, channels, *size)
    values = torch.arange(4 * max(1, int(np.prod(shape)))).remainder(256).to(torch.uint8)
    images = values[: int(np.prod(shape))].reshape(shape)
    if layout == "strided":
        images = torch.stack((images, images), dim=-1)[..., 0]
    elif layout == "transposed":
        images = images.transpose(-1, -2).contiguous().transpose(-1, -2)
    expected = images.clone().reshape(-1, channels, *size)
    if dtype != torch.uint8:
        images = (images.double() / 255).to(dtype)
    if numpy:
        if dtype == torch.bfloat16:  # NumPy has no such type
            return
        images = images.numpy()
    grid, form = to_grid(images)
    assert grid.dtype == torch.uint8
    assert grid.is_contiguous()
    assert torch.equal(grid, expected)
    back = form.images(grid)
    assert type(back) is type(images)
    assert back.shape == images.shape
    assert back.dtype == images.dtype
    assert (back == images).all()


@given(st.integers(0, 255), st.floats(-0.49, 0.49))
def test_floats_are_rounded_to_nearest(value, offset):
    image = torch.full((1, 1, 1), min(1.0, max(0.0, (value + offset) / 255)), dtype=torch.float64)
    assert int(grid_of(image)) == value


def test_read_only_reversed_and_big_arrays_are_read_and_left_alone():
    array = GRID.numpy().copy()
    array.flags.writeable = False
    assert torch.equal(grid_of(array), GRID)
    assert torch.equal(grid_of(array[::-1, :, ::-1]), GRID.flip(0, 2))


def test_gradients_are_detached():
    images = (GRID.float() / 255).requires_grad_()
    grid, form = to_grid(images)
    assert not form.images(grid).requires_grad


@pytest.mark.parametrize(
    "images",
    [
        [[[0.0]]],
        None,
        "image.png",
        torch.zeros(1, 1, 4, 4, dtype=torch.int64),
        torch.zeros(1, 1, 4, 4, dtype=torch.bool),
        torch.zeros(1, 1, 4, 4, dtype=torch.complex64),
        np.zeros((1, 1, 4, 4), dtype=np.int32),
        np.zeros((1, 1, 4, 4), dtype=bool),
        np.zeros((1, 1, 4, 4), dtype=object),
    ],
    ids=lambda images: f"{type(images).__name__}-{getattr(images, 'dtype', '')}",
)
def test_other_types_are_refused_by_name(images):
    came = str(getattr(images, "dtype", type(images).__name__))
    with pytest.raises(TypeError, match=r"expected a torch tensor or NumPy array") as error:
        to_grid(images)
    assert came in str(error.value)


@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (1, 1, 1, 4, 4)])
def test_other_ranks_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(N, C, H, W\) or \(C, H, W\)") as error:
        to_grid(torch.zeros(shape))
    assert str(tuple(shape)) in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "NaN"), (float("inf"), "inf"), (1.001, "1.001"), (-0.001, "-0.001"), (255.0, "255")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_off_the_unit_interval_are_refused(value, said, dtype):
    images = torch.full((2, 1, 4, 4), 0.5, dtype=dtype)
    images[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]") as error:
        to_grid(images)
    if dtype == torch.float32:
        assert said in str(error.value)


def test_a_masked_array_is_refused():
    with pytest.raises(TypeError, match=r"got a masked array: give its masked values some value first, by filled"):
        to_grid(np.ma.masked_array(GRID.numpy(), mask=False))


def test_arrays_come_back_plain_and_in_the_machines_order_of_bytes():
    class Own(np.ndarray):
        pass

    grid, form = to_grid((GRID.numpy() / 255).astype(">f4").view(Own))
    assert torch.equal(grid, GRID)
    found = form.images(grid)
    assert type(found) is np.ndarray
    assert found.dtype == np.dtype("float32")


def test_on_a_gpu_of_apples_float64_becomes_float32():
    """With a stand-in for the GPU, which takes what it can."""

    class Values(torch.Tensor):
        def to(self, target):
            if isinstance(target, torch.device):
                assert self.dtype != torch.float64, "Cannot convert a MPS Tensor to float64 dtype"
                return self
            return super().to(target)

    mps, values = torch.device("mps"), torch.ones(3, dtype=torch.float64)
    found = ImageForm(False, True, torch.float32, mps).per_image(values.as_subclass(Values))
    assert found.dtype == torch.float32
    assert ImageForm(False, True, torch.float32, torch.device("cpu")).per_image(values).dtype == torch.float64
    assert (widest(mps), widest(torch.device("cuda"))) == (torch.float32, torch.float64)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda images: images.to_sparse(), "sparse_coo"),
        (lambda images: images.to("meta"), "meta"),
        (lambda images: torch.nested.nested_tensor([*images]), "nested"),
    ],
    ids=["sparse", "meta", "nested"],
)
def test_tensors_without_plain_values_are_called_by_their_kind(made, kind):
    with pytest.raises(TypeError, match=f"got a tensor of the kind {kind}, which has no plain values"):
        to_grid(made(torch.zeros(1, 1, 4, 4)))


@pytest.mark.parametrize(
    ("highest", "hint", "said"),
    [
        (1.5, "; clip=True clips them", "to 1.5; clip=True clips them"),
        (2.0, "; clip=True clips them", "to 2; values in 0..255 have to be uint8, or divided by 255"),
        (255.0, "; clip=True clips them", "to 255; values in 0..255 have to be uint8, or divided by 255"),
        (255.5, "; clip=True clips them", "to 255.5; clip=True clips them"),
        (255.0, "", "to 255"),
    ],
)
def test_what_is_said_of_values_out_of_range(highest, hint, said):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got values from 0 ") as refused:
        check_range(torch.tensor([0.0, highest]), hint=hint)
    assert str(refused.value).endswith(said)


def test_what_rounding_leaves_out_of_range_is_taken():
    check_range(torch.tensor([-0.9e-6, 1.0 + 0.9e-6], dtype=torch.float64))
    for value in (-1.1e-6, 1.0 + 1.1e-6):
        with pytest.raises(ValueError, match="must be in"):
            check_range(torch.tensor([value], dtype=torch.float64))
    check_range(torch.tensor([-5.0, 5.0]), clip=True)
    with pytest.raises(ValueError, match="got NaN"):
        check_range(torch.tensor([0.0, float("nan")]), clip=True)
