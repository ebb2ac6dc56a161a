"""The judge must let exact results pass and nothing else."""

import pytest
import torch

import pxfast
import pxfast.pixeldefend.verify as verify_module
from pxfast.pixeldefend.verify import Verification

EPS = 16


@pytest.fixture(scope="module")
def case(tiny_colour_model):
    """Model, images, and their purification by the reference engine."""
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return tiny_colour_model, images, pxfast.purify(images, EPS, model=tiny_colour_model, engine="reference")


def test_exact_result_passes(case):
    model, images, purified = case
    found = pxfast.verify(images, purified, EPS, model=model)
    assert found.passed
    assert found.bounded
    assert found.regret.shape == images.shape
    assert found.regret.dtype == torch.float32
    assert found.max_regret <= 1e-3
    assert found.fraction_within(1e-3) == 1.0
    assert "passed" in str(found)


def test_exact_result_passes_with_the_joint_mixture(make_model, case):
    model, images = make_model(channels=3, head="pixelcnn++"), case[1][:1]
    purified = pxfast.purify(images, EPS, model=model, engine="reference")
    assert pxfast.verify(images, purified, EPS, model=model).passed
    wrong = pxfast.purify(images, EPS, model=case[0], engine="reference")
    assert not pxfast.verify(images, wrong, EPS, model=model).passed


def test_bf16_result_is_judged_by_bf16_weights(case):
    model, images, _ = case
    images = images[:1]
    purified = pxfast.purify(images, EPS, model=model, engine="reference", precision="bf16")
    judged = pxfast.verify(images, purified, EPS, model=model, precision="bf16")
    assert judged.passed
    assert judged.mean_regret <= 1e-5
    assert pxfast.verify(images, purified, EPS, model=model).mean_regret > judged.mean_regret


def test_what_bf16_explains_is_said() -> None:
    hint = "; a result in bf16 is judged with precision='bf16'"
    regret = torch.full((1, 1, 2, 2), 2e-3)
    assert str(Verification(regret, True, EPS, "fp32")).startswith("FAILED (fp32)")
    assert str(Verification(regret, True, EPS, "fp32")).endswith(hint)
    others = [Verification(regret, False, EPS, "fp32"), Verification(regret, True, EPS, "bf16")]
    others += [Verification(each * regret, True, EPS, "fp32") for each in (0, 10)]
    assert not any(hint in str(each) for each in others)


def test_unpurified_images_fail(case):
    model, images, _ = case
    found = pxfast.verify(images, images, EPS, model=model)
    assert found.bounded
    assert not found.passed
    assert found.mean_regret > 0.01
    assert "FAILED" in str(found)
    assert "bf16" not in str(found), "more than bf16's rounding"


@pytest.mark.parametrize("index", [(0, 0, 0, 0), (1, 1, 4, 5), (2, 2, 7, 7)])
def test_one_wrong_sub_pixel_fails(case, index):
    model, images, purified = case
    corrupted = purified.clone()
    given, chosen = int(images[index]), int(purified[index])
    corrupted[index] = max(given - EPS, 0) if chosen != max(given - EPS, 0) else min(given + EPS, 255)
    found = pxfast.verify(images, corrupted, EPS, model=model)
    assert found.bounded
    assert not found.passed
    assert found.regret[index] > 1e-3


def test_one_sub_pixel_out_of_range_fails(case):
    model, images, purified = case
    corrupted = purified.clone()
    given = int(images[0, 0, 0, 0])
    corrupted[0, 0, 0, 0] = given + EPS + 1 if given < 128 else given - EPS - 1
    found = pxfast.verify(images, corrupted, EPS, model=model)
    assert not found.bounded
    assert not found.passed
    assert "NOT within" in str(found)


def test_another_eps_or_model_fails(case, make_model):
    model, images, purified = case
    assert not pxfast.verify(images, purified, EPS + 8, model=model).passed
    assert not pxfast.verify(images, purified, EPS, model=make_model(channels=3, seed=1)).passed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_unpurified_image_among_many_fails(precision):
    regret = torch.zeros(2000, 1, 8, 8)
    found = Verification(regret, True, EPS, precision)
    assert found
    assert found.passed
    regret[7] = 0.3
    found = Verification(regret, True, EPS, precision)
    assert found.mean_regret < 5e-3
    assert not found.passed
    assert not found, "a failed verification is false"
    assert found.worst_mean_regret == pytest.approx(0.3)
    assert Verification(regret[:0], True, EPS, precision)


def test_thresholds():
    regret = torch.zeros(1, 1, 100, 100)
    regret[0, 0, 0, 0] = 2e-3
    assert Verification(regret, True, EPS, "fp32").passed
    assert not Verification(regret, False, EPS, "fp32").passed
    regret[0, 0, 0, 1] = 2e-3
    assert not Verification(regret, True, EPS, "fp32").passed, "99.98 % are not enough"
    assert not Verification(torch.full_like(regret, 2e-5), True, EPS, "fp32").passed, "mean"
    assert Verification(torch.full_like(regret, 4e-3), True, EPS, "bf16").passed
    assert not Verification(torch.full_like(regret, 6e-3), True, EPS, "bf16").passed
    for precision in ("fp32", "bf16"):
        assert not Verification(torch.full_like(regret, float("nan")), True, EPS, precision).passed


@pytest.mark.parametrize("adaptive", [None, "sub-pixel"])
def test_a_large_image_is_judged_in_strips(case, adaptive, monkeypatch):
    """So memory does not grow with its area; the regret changes by the order of summation alone."""
    model, images, purified = case
    settings = {"model": model, "adaptive": adaptive, "threshold": None if adaptive is None else 5.0}
    whole = pxfast.verify(images, purified, EPS, **settings)
    asked, real = [], model.head.log_probs

    def noted(self, features, given, values):
        asked.append(given.numel())
        return real.__func__(self, features, given, values)

    monkeypatch.setattr(type(model.head), "log_probs", noted)
    for most in (1, 3 * 8 * 3, 3 * 8 * 8 * 2):
        monkeypatch.setattr(verify_module, "SUB_PIXELS_AT_ONCE", most)
        asked.clear()
        found = pxfast.verify(images, purified, EPS, **settings)
        torch.testing.assert_close(found.regret, whole.regret, rtol=0, atol=1e-5)
        assert max(asked) <= max(most, 3 * 3 * 8)  # a row of each image at least


@pytest.mark.parametrize("within", [None, (40, 60)])
def test_no_values_are_asked_for_but_those_in_range_and_the_chosen_one(case, within, monkeypatch):
    """Of all 256 the head alone would take three times as long as the network."""
    model, images, _ = case
    if within is not None:
        within = tuple(torch.full_like(images, bound) for bound in within)
        images = images.clamp(40, 60)
    purified = pxfast.purify(images, EPS, model=model, within=within, engine="reference")
    asked, real = [], type(model.head).log_probs

    def noted(self, features, given, values):
        asked.append(values.shape[-1])
        return real(self, features, given, values)

    monkeypatch.setattr(type(model.head), "log_probs", noted)
    assert pxfast.verify(images, purified, EPS, within=within, model=model).passed
    assert max(asked) == (2 * EPS + 1 if within is None else 21) + 1


def test_empty_batches_and_refusals(case):
    model, images, purified = case
    assert pxfast.verify(images[:0], purified[:0], EPS, model=model).passed
    with pytest.raises(ValueError, match="differ in shape"):
        pxfast.verify(images, purified[:2], EPS, model=model)
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'auto'"):
        pxfast.verify(images, purified, EPS, model=model, precision="auto")
    with pytest.raises(TypeError, match="eps"):
        pxfast.verify(images, purified, 0.1, model=model)
