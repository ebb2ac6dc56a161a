"""Statistics of surprise and their p-values, exact on cases made by hand; detectors that use them."""

from __future__ import annotations

import math

import pytest
import torch

import pxfast
from pxfast.pixeldefend.detection import Detector
from pxfast.pixeldefend.statistics import STATISTICS, permutation_p_values


def test_statistics_of_a_case_by_hand() -> None:
    bits = torch.zeros(2, 1, 5, 8, dtype=torch.float64)
    bits[0, 0, :4, 4:] = 2.0  # a whole block of 4x4 pixels
    bits[0, 0, 4, 0] = 9.0
    bits[1] = 8.0  # exactly that of noise, everywhere
    found = {name: statistic(-bits * math.log(2.0)) for name, statistic in STATISTICS.items()}
    total = torch.tensor([41.0, 320.0], dtype=torch.float64)
    torch.testing.assert_close(found["log-likelihood"], -total * math.log(2.0))
    torch.testing.assert_close(found["block"], torch.tensor([-2.0, -8.0]).double())
    mean = 41.0 / 40.0
    torch.testing.assert_close(found["spread"], torch.tensor([mean**2 - (16 * 4.0 + 81.0) / 40.0, 0.0]).double())
    assert found["rare"].tolist() == [-1.0 / 40.0, 0.0]


def test_the_strangest_block_is_of_4x4_whole_pixels_or_of_what_there_is() -> None:
    bits = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    bits[0, :, 1:5, 2:6] = torch.tensor([1.0, 2.0, 6.0]).double()[:, None, None]  # 3 bits per sub-pixel
    bits[0, :, 2, 3] += 16.0  # in a block of 3x3 pixels it would weigh more
    torch.testing.assert_close(STATISTICS["block"](-bits * math.log(2.0)), torch.tensor([-4.0]).double())
    small = torch.tensor([[[[1.0, 2.0, 6.0], [3.0, 0.0, 0.0]]]]).double()
    torch.testing.assert_close(STATISTICS["block"](-small * math.log(2.0)), torch.tensor([-2.0]).double())


def test_p_values_of_both_tails_are_exact_with_ties() -> None:
    train = torch.tensor([1.0, 2.0, 2.0, 3.0])
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    assert permutation_p_values(train, values).tolist() == [0.2, 0.4, 0.8, 1.0, 1.0]
    # upper: 1, 1, 4/5, 2/5, 1/5
    assert permutation_p_values(train, values, "both").tolist() == [0.4, 0.8, 1.0, 0.8, 0.4]


def test_held_out_values_have_uniform_p_values() -> None:
    """Of ten exchangeable values each is as often the one held out: its rank is uniform."""
    values = torch.arange(10.0)[torch.randperm(10, generator=torch.Generator().manual_seed(3))]
    for tail, expected in (
        ("lower", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("both", [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1.0, 1.0]),
    ):
        found = [float(permutation_p_values(values[torch.arange(10) != i], values[i : i + 1], tail)) for i in range(10)]
        assert sorted(found) == pytest.approx(expected)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_detectors_keep_their_statistic_and_tail(statistic: str, tiny_model, tmp_path) -> None:
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
    images[10:] = 128  # flat
    detector, path = Detector(tiny_model, statistic=statistic, tail="both").fit(images[:9]), tmp_path / "a.safetensors"
    with torch.no_grad():
        expected = STATISTICS[statistic](tiny_model.log_prob(images).double())
    torch.testing.assert_close(detector.log_likelihoods, expected[:9].float(), rtol=1e-5, atol=1e-5)
    found = detector.p_value(images)
    for value, p_value in zip(expected[9:], found[9:], strict=True):
        least = 1 + min(int((expected[:9] <= value).sum()), int((expected[:9] >= value).sum()))
        assert float(p_value) == min(1.0, 2 * least / 10)
    detector.save(path)
    loaded = Detector.load(path, tiny_model)
    assert (loaded.statistic, loaded.tail) == (statistic, "both")
    assert torch.equal(loaded.p_value(images), found)
    lower = Detector(tiny_model, statistic=statistic).fit(images[:9])
    assert torch.equal(lower.fit(images[:9]).log_likelihoods, detector.log_likelihoods)
    assert (lower.p_value(images) != found).any()
    assert f"{statistic}, both tail" in repr(loaded)


def test_both_tails_need_twice_the_training_images(tiny_model) -> None:
    images = torch.zeros(25, 1, 8, 8, dtype=torch.uint8)
    Detector(tiny_model).fit(images).is_adversarial(images[:1])
    with pytest.raises(ValueError, match="with 25 training images: use more of them"):
        Detector(tiny_model, tail="both").fit(images).is_adversarial(images[:1])


def test_the_shipped_values_are_log_likelihoods() -> None:
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"no block of training images is shipped: call fit"):
        pxfast.Detector(statistic="block").p_value(images)
    lower, both = (float(pxfast.Detector(tail=tail).p_value(images)) for tail in ("lower", "both"))
    assert lower > 0.99
    assert both < 0.02, "an empty image is likelier than any"
