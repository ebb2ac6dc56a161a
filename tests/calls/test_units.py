"""Units: images are uint8 or floats in [0, 1] and come back as they came; eps counts steps of the grid."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from support.attack_network import attack_fixture
from support.helpers import bundled_images, random_model
from support.wrong_values import IMAGES, classifier, scorer, tiny
from torch import Tensor, nn

import pxfast
from pxfast import attacks, classifiers, defences
from pxfast.attacks import ATTACKS, BIM, CWL2, PGD, SPSA, Rand, attack_to_file
from pxfast.data.images import to_grid
from pxfast.pixelcnn.likelihood import log_prob_gradient
from pxfast.pixeldefend.lbfgs import lbfgs_purify
from pxfast.pixeldefend.relaxed import RelaxedPurifier

FIXTURE = attack_fixture()
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def as_floats(images: Tensor, dtype: torch.dtype) -> Tensor:
    return (images.double() / 255).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("attack", [BIM(steps=3), Rand(), CWL2(steps=5, binary_search_steps=1)], ids=lambda a: a.name)
def test_attacks_give_back_what_they_got(attack: attacks.Attack, dtype: torch.dtype) -> None:
    images, labels = FIXTURE.images, FIXTURE.labels
    expected = attack.run(FIXTURE.network, images, labels, 8)
    found = attack.run(FIXTURE.network, as_floats(images, dtype), labels, 8)
    assert found.images.dtype == dtype
    assert torch.equal(found.images, as_floats(expected.images, dtype))
    assert found.rates() == expected.rates()
    assert torch.equal(attack(FIXTURE.network, as_floats(images, dtype), labels, 8), found.images)
    empty = attack(FIXTURE.network, as_floats(images, dtype)[:0], labels[:0], 8)
    assert (empty.dtype, tuple(empty.shape)) == (dtype, (0, *images.shape[1:]))


def test_attacks_round_to_the_grid_first() -> None:
    """As purification does: the result is on the grid, and within eps of the image there."""
    images, labels = FIXTURE.images, FIXTURE.labels
    between = (images.double() / 255 + 0.4 / 255).clamp(0, 1)
    assert not torch.equal(between, as_floats(images, torch.float64))
    expected = BIM(steps=3)(FIXTURE.network, images, labels, 8)
    assert torch.equal(BIM(steps=3)(FIXTURE.network, between, labels, 8), as_floats(expected, torch.float64))


def test_a_search_for_several_eps_takes_floats() -> None:
    images, labels, attack = FIXTURE.images, FIXTURE.labels, CWL2(steps=5, binary_search_steps=1)
    floats = as_floats(images, torch.float32)
    found = attack.unclipped(FIXTURE.network, floats, labels)
    assert torch.equal(found, attack.unclipped(FIXTURE.network, images, labels))
    result = attack.clip(FIXTURE.network, floats, labels, found, 8)
    assert torch.equal(result.images, as_floats(attack(FIXTURE.network, images, labels, 8), torch.float32))


def test_a_defended_classifier_is_attacked_with_floats() -> None:
    images = bundled_images(1)[:2]
    defended = pxfast.Defended(classifiers.load_classifier("fashion-mnist"), [defences.FeatureSqueezing()])
    attack = attacks.BPDA(steps=2)
    expected = attack(defended, images, None, 8)
    assert torch.equal(attack(defended, images / 255, None, 8), expected / 255)


def test_a_file_of_attacked_floats_is_on_the_grid(tmp_path) -> None:
    images, labels = FIXTURE.images, FIXTURE.labels
    given = as_floats(images, torch.float32)
    result = attack_to_file(BIM(steps=2), FIXTURE.network, given, labels, tmp_path / "a.npy", eps=8)
    expected = BIM(steps=2)(FIXTURE.network, images, labels, 8)
    assert torch.equal(result.images, as_floats(expected, torch.float32))
    written = np.load(tmp_path / "a.npy")
    assert written.dtype == np.uint8
    assert torch.equal(torch.from_numpy(written), expected)


@pytest.mark.parametrize("form", [list, np.asarray, lambda labels: labels.int()], ids=["list", "array", "int32"])
def test_a_file_of_attacked_images_takes_labels_as_attacks_do(form, tmp_path) -> None:
    images, labels = FIXTURE.images, FIXTURE.labels
    given = form(labels.tolist()) if form is list else form(labels)
    result = attack_to_file(BIM(steps=2), FIXTURE.network, images, given, tmp_path / "a.npy", eps=8)
    assert torch.equal(result.images, BIM(steps=2)(FIXTURE.network, images, given, 8))
    assert np.load(tmp_path / "a.labels.npy").tolist() == labels.tolist()


# --- values outside [0, 1] ---

UNIT = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
OVER = UNIT * 1.2 - 0.1  # overshoots on both sides
OVER[0, 0, 1, :2] = torch.tensor([-0.05, 1.05])  # where small networks look as well


def flat() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


@functools.cache
def tinier() -> pxfast.PixelCNN:
    """A network of 4x4 images, for what goes from pixel to pixel."""
    return random_model((4, 4))


def defended(**options: Any) -> pxfast.Defended:
    return pxfast.Defended(flat(), [pxfast.Purifier(2, model=tiny())], **options)


# a call with images and options, of which clip=True is one
CALLS: dict[str, Callable[..., Tensor]] = {
    "purify": lambda images, **clip: pxfast.purify(images, 2, model=tiny(), **clip),
    "purify, arrays": lambda x, **clip: torch.from_numpy(pxfast.purify(x.numpy(), 2, model=tiny(), **clip)),
    "Purifier": lambda images, **clip: pxfast.Purifier(2, model=tiny(), **clip)(images),
    "Purifier by name": lambda images, **clip: defences.parse_defence("purifier:eps=2", model=tiny(), **clip)(images),
    "ADPPurifier": lambda images, **clip: pxfast.ADPPurifier(steps=2, model=scorer(), **clip)(images),
    "ADPPurifier, full": lambda x, **clip: pxfast.ADPPurifier(steps=2, model=scorer(), backward="full", **clip)(x),
    "Defended": lambda images, **clip: defended(**clip)(images),
    "log_prob": lambda images, **clip: pxfast.log_prob(images, model=tiny(), **clip),
    "bits_per_dim": lambda images, **clip: pxfast.bits_per_dim(images, model=tiny(), **clip),
    "log_prob_gradient": lambda images, **clip: log_prob_gradient(images, model=tiny(), **clip),
    "verify": lambda images, **clip: pxfast.verify(images, images, 2, model=tiny(), **clip).regret,
    "Detector.fit": lambda images, **clip: pxfast.Detector(tiny(), **clip).fit(images).log_likelihoods,
    "Detector.p_value": lambda x, **clip: pxfast.Detector(tiny(), **clip).fit(IMAGES).p_value(x),
    "Detector.bits_per_dim": lambda images, **clip: pxfast.Detector(tiny(), **clip).bits_per_dim(images),
    "RandomAboveThreshold": lambda x, **clip: classifiers.RandomAboveThreshold(flat(), model=tiny(), **clip)(x),
    "RelaxedPurifier": lambda images, **clip: RelaxedPurifier(1, tinier(), **clip)(images[:1, :, :4, :4]),
    "an attack": lambda images, **clip: BIM(steps=2)(classifier(), images, None, 8, **clip),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_overshooting_is_refused_or_clipped(call: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got values from -0\.\d+ to 1\.\d+; clip=True clips"):
        call(OVER)
    assert torch.equal(call(OVER, clip=True), call(OVER.clamp(0, 1)))
    assert torch.equal(call(UNIT, clip=True), call(UNIT)), "it changes nothing of what is right"
    broken = OVER.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        call(broken, clip=True)


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_rounding_is_no_error(call: Callable[..., Tensor]) -> None:
    corners = UNIT.clone()
    corners[0, 0, 0, 0], corners[0, 0, 0, 1] = 0.0, 1.0
    rounded = corners.clone()
    rounded[0, 0, 0, 0], rounded[0, 0, 0, 1] = -5e-7, 1.0 + 5e-7
    found, expected = call(rounded).double(), call(corners).double()
    assert found.isfinite().all()
    if call not in (CALLS["ADPPurifier"], CALLS["ADPPurifier, full"]):  # whose noise is of the very image
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_lbfgs_and_squeezing_clip() -> None:
    pytest.importorskip("scipy")
    found = lbfgs_purify(OVER[:1], 1, model=tiny(), max_iterations=1, clip=True)
    assert torch.equal(found.images, lbfgs_purify(OVER[:1].clamp(0, 1), 1, model=tiny(), max_iterations=1).images)
    squeezing = defences.FeatureSqueezing(clip=True)
    assert torch.equal(squeezing(OVER), defences.FeatureSqueezing()(OVER.clamp(0, 1)))


@pytest.mark.parametrize(("value", "shown"), [(1.0 + 2e-6, "1.000002"), (-2e-6, "-2"), (1.00001, "1.00001")])
def test_a_small_offence_can_be_seen(value: float, shown: str) -> None:
    images = UNIT.double()
    images[0, 0, 3, 3] = value
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]") as error:
        to_grid(images)
    assert shown in str(error.value)


def test_what_is_clipped_has_no_gradient_and_the_rest_has() -> None:
    x = OVER.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(defended(clip=True)(x).sum(), x)
    outside = (OVER < 0) | (OVER > 1)
    assert (gradient[outside] == 0).all()
    assert (gradient[~outside] != 0).any()


# --- steps of the grid ---


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (8 / 255, "for 8/255 write NAME=8"),
        (np.float32(8 / 255), "for 8/255 write NAME=8"),
        (torch.tensor(8 / 255), "for 8/255 write NAME=8"),
        (Fraction(8, 255), "for 8/255 write NAME=8"),
        ("8/255", "for 8/255 write NAME=8"),
        (0.0314, "for 8/255 write NAME=8"),
        (0.03, "0.03 is 7.65/255, write NAME=8 for 8/255"),
        (0.001, "0.001 is 0.255/255, write NAME=1 for 1/255"),
    ],
    ids=str,
)
def test_a_part_of_the_range_is_refused_with_the_integer_meant(value: object, said: str) -> None:
    for name, call in {
        "eps": lambda value: pxfast.Purifier(value),
        "delta": lambda value: SPSA(delta=value),
        "step": lambda value: attacks.BPDA(step=value),
    }.items():
        with pytest.raises(TypeError, match=f"^{name} must be") as error:
            call(value)
        assert str(error.value).endswith(f"; it counts steps of 0..255: {said.replace('NAME', name)}")


def test_every_step_of_an_attack_knows_the_grid() -> None:
    """Those of PGD and of adversarial training may be fractions of a step, but no 2/255."""
    for name, attack in ATTACKS.items():
        if "step" in inspect.signature(attack).parameters:
            with pytest.raises((TypeError, ValueError), match="for 2/255 write step=2"):
                attacks.find_attack(name, step=2 / 255)
    assert PGD(step=0.5).step == 0.5
    with pytest.raises(ValueError, match=r"number of at least 0\.125, in steps of the grid.*for 8/255 write delta=8"):
        classifiers.ClassifierSettings(delta=8 / 255)
    for wrong in (0.0, 1.0, 1.5, "8", "a/b", "1/0", "nan", None, [0.5]):  # no part of the range: no conversion
        with pytest.raises(TypeError, match=r"^eps must be an integer in 0\.\.255, got [^;]*$"):
            pxfast.Purifier(wrong)


def test_sigma_is_a_part_of_the_range() -> None:
    assert defences.parse_defence("adp:sigma=16/255").sigma == 16 / 255
    with pytest.raises(ValueError, match=r"sigma must be a number in \[0, 1\].*: for 16 of these write 16 / 255$"):
        pxfast.ADPPurifier(sigma=16)


def test_a_table_says_what_its_eps_should_be(tmp_path) -> None:
    from pxfast.evaluation import load_table

    (tmp_path / "a.toml").write_text('name = "a"\nattack_eps = [2, 0.03]\n')
    with pytest.raises(ValueError, match=r"attack_eps must be an integer in 0\.\.255.*write attack_eps=8 for 8/255"):
        load_table(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("purify a.npy b.npy --eps", "--eps"),
        ("attack cifar10 --out a.npy --eps", "--eps"),
        ("figures density --attack-eps", "--attack-eps"),
        ("figures density --purify-eps", "--purify-eps"),
    ],
)
def test_commands_say_what_to_write(command: str, flag: str, refused) -> None:
    assert refused(*command.split(), "8/255").endswith(f"for 8/255 write {flag}=8")
    assert f"0.03 is 7.65/255, write {flag}=8 for 8/255" in refused(*command.split(), "0.03")
    assert "expected an integer in 0..255, got 'much'" in refused(*command.split(), "much")


def test_commands_say_what_to_write_in_their_texts(refused) -> None:
    line = refused("attack", "cifar10", "--out", "a.npy", "--defence", "purifier:eps=8/255")
    assert line.endswith("for 8/255 write eps=8")
    line = refused("attack", "cifar10", "--out", "a.npy", "--attack", "pgd", "--option", "step=2/255")
    assert line.endswith("for 2/255 write step=2")
    line = refused("train-classifier", "cifar10", "resnet62", "--out", "a.safetensors", "--delta", "8/255")
    assert line.endswith("for 8/255 write --delta=8")
