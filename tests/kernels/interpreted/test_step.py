"""The step kernel against its twin. Where it runs: tests/support/triton_device.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.triton_device import DEVICE, INTERPRETED, few_examples, on_device

pytestmark = on_device

EPILOGUES = {"hidden": 0, "gate": 1, "publish": 2, "output": 3}


def random_case(seed, epilogue, channels, outputs, taps, images, columns, scale, row):
    """Arguments of a step on random caches, in the order of ``step_twin``: all that it takes but the result."""
    generator = torch.Generator().manual_seed(seed)
    N = outputs * (2 if epilogue == EPILOGUES["gate"] else 1)
    matrices = [torch.randn(channels, N, generator=generator) for _ in range(taps)]
    biases = torch.randn(2, 2, N, generator=generator)
    width = 2 * (columns.stop + 4)  # cells of a row of any cache here
    even = outputs + outputs % 2
    starts = [0]
    for cell in [*[channels] * taps, 2 * outputs, even, even]:
        starts.append(starts[-1] + width * images * cell)
    caches = torch.randn(starts[-1], generator=generator)
    places = [start // 16 + 2 * images * channels // 16 for start in starts[:taps]]
    if row == 0:
        places[0] = -1  # above the image
    outs = [start // 16 for start in starts[taps:-1]]
    if epilogue == EPILOGUES["hidden"]:
        outs[1:] = [-1, -1]
    elif seed % 4 < 3:
        outs[seed % 4] = -1
    entry = torch.tensor([row, *outs, *places, *[-1] * (12 - taps)], dtype=torch.int32)
    return matrices, biases, epilogue, 0.5, caches, entry, images, columns, scale


def both(case, tile):
    """Caches and result after the twin and after the kernel."""
    from pxfast.kernels.step import pack, step, step_twin

    matrices, biases, epilogue, multiplier, caches, entry, images, columns, scale = case
    outputs = matrices[0].shape[1] // (2 if epilogue == EPILOGUES["gate"] else 1)
    shape = (images, outputs) if epilogue == EPILOGUES["output"] else (columns.stop, images, outputs)
    results = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    twins = caches.clone()
    step_twin(matrices, biases, epilogue, multiplier, twins, entry, results[0], images, columns, scale)
    packed = pack([m.to(DEVICE) for m in matrices], biases.to(DEVICE), epilogue, multiplier, caches.dtype, tile)
    ours, result = caches.to(DEVICE), results[1].to(DEVICE)
    step(packed, ours, entry.to(DEVICE), result, images, columns, scale).run()
    return twins, results[0], ours.cpu(), result.cpu()


@pytest.mark.parametrize("epilogue", list(EPILOGUES))
@few_examples(5)
@given(
    seed=st.integers(0, 1000),
    channels=st.integers(1, 21).map(lambda n: 2 * n),
    outputs=st.integers(1, 37),
    taps=st.integers(1, 8),
    images=st.sampled_from([16, 48]),
    columns=st.sampled_from([range(0, 1), range(3, 4), range(0, 5), range(1, 6, 2)]),
    scale=st.sampled_from([1, 2, 0.5]),
    row=st.sampled_from([0, 5]),
)
def test_it_does_what_its_twin_does(epilogue, seed, channels, outputs, taps, images, columns, scale, row):
    from pxfast.kernels.launch import Tile

    if epilogue == "output":
        columns = range(columns.start, columns.start + 1)
    case = random_case(seed, EPILOGUES[epilogue], channels, outputs, taps, images, columns, scale, row)
    caches, result, our_caches, our_result = both(case, Tile(32, 16, 16))
    torch.testing.assert_close(our_result, result, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(our_caches, caches, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("epilogue", list(EPILOGUES))
@few_examples(3)
@given(
    seed=st.integers(0, 1000),
    channels=st.integers(1, 21).map(lambda n: 2 * n),
    outputs=st.integers(1, 37),
    early=st.integers(1, 4),
    late=st.integers(1, 4),
    row=st.sampled_from([0, 5]),
)
def test_sums_over_early_taps_are_left_and_added(epilogue, seed, channels, outputs, early, late, row):
    """The taps in two steps, the first for a whole row, give what one step gives."""
    from pxfast.kernels.launch import Tile
    from pxfast.kernels.step import pack, step

    pixel = range(2, 3)
    case = random_case(seed, EPILOGUES[epilogue], channels, outputs, early + late, 16, range(0, 5), 1, row)
    matrices, biases, kind, multiplier, caches, entry, images, columns, _ = case
    shape = (images, outputs) if epilogue == "output" else (columns.stop, images, outputs)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def run(taps, over, ours, result, **sums):
        some_matrices = [matrix.to(DEVICE) for matrix in matrices[taps]]
        packed = pack(some_matrices, biases.to(DEVICE), kind, multiplier, torch.float32, Tile(32, 16, 16))
        some = torch.cat((entry[:4], entry[4:][taps], torch.full((8,), -1, dtype=torch.int32)))
        step(packed, ours, some.to(DEVICE), result, images, over, 1, **sums).run()

    whole, result = caches.to(DEVICE), start.to(DEVICE)
    run(slice(0, early + late), pixel, whole, result)
    parts, parts_result = caches.to(DEVICE), start.to(DEVICE)
    partial = torch.full((columns.stop, images, matrices[0].shape[1]), torch.nan, device=DEVICE)
    run(slice(0, early), columns, parts, parts_result, leaves=partial)
    assert torch.equal(parts.cpu(), caches), "it publishes nothing"
    assert torch.equal(parts_result.cpu(), start)
    run(slice(early, early + late), pixel, parts, parts_result, adds=partial)
    torch.testing.assert_close(parts.cpu(), whole.cpu(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts_result.cpu(), result.cpu(), rtol=1e-5, atol=1e-5)


def test_columns_and_images_do_not_change_each_others_bits():
    from pxfast.kernels.launch import Tile

    # NumPy's matrix product, which is the interpreter's, rounds by the place of a row; a multiple of the tile keeps it
    images = 32 if INTERPRETED else 48
    case = random_case(3, EPILOGUES["gate"], 18, 9, 3, images, range(0, 5), 1, 2)
    _, _, caches, result = both(case, Tile(32, 16, 16))
    alone = (*case[:7], range(3, 4), case[8])
    _, _, _, column = both(alone, Tile(32, 16, 16))
    assert torch.equal(column[3], result[3])
    spoilt = case[4].clone()
    for start in case[5][4:7].tolist():  # all images but number 17, in every cell that is read
        cells = spoilt[16 * start : 16 * start + 5 * images * 18].view(5, images, 18)
        cells[:, torch.arange(images) != 17] += 1.0
    _, _, _, company = both((*case[:4], spoilt, *case[5:]), Tile(32, 16, 16))
    assert torch.equal(company[:, 17], result[:, 17])
    assert not torch.equal(company[:, 16], result[:, 16])
    assert caches.isfinite().all()


def test_more_taps_than_an_entry_holds_are_refused():
    from pxfast.kernels.launch import Tile
    from pxfast.kernels.step import pack

    with pytest.raises(ValueError, match="at most 8 taps, got 9"):
        pack([torch.zeros(2, 2)] * 9, torch.zeros(2, 2, 2), 0, 1.0, torch.float32, Tile(16, 16, 16))
