"""certify: its result, kept guesses, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from support.engines import QUICK
from support.helpers import noisy, random_model, real_images, trained_model
from support.own_classifiers import BentLinear
from torch import Tensor, nn

import pxfast
from pxfast.certification import cells, certify, certify_l2, guesses, shifts, splitting
from pxfast.engines.arithmetic import arithmetic_of
from pxfast.pixelcnn import shipped
from pxfast.pixeldefend.cells import midpoints

# --- the door ---


def test_the_result_says_what_holds():
    images = noisy(real_images(1, (8, 8), 6))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    found = pxfast.certify(BentLinear(64), images.numpy(), labels, width=16, purifier="midpoints")
    assert isinstance(found, pxfast.Certificates)
    assert found.counts.sum(1).tolist() == [16] * 6
    assert torch.equal(found.labels, labels)
    assert found.accuracy == float((found.predictions == labels).double().mean())
    for radius in (0, 1, 2.5, 8):
        held = (found.predictions == labels) & (found.radii >= radius)
        assert found.certified_accuracy(radius) == float(held.double().mean())
    radii, shares = found.curve()
    assert radii == sorted(radii)
    assert shares == sorted(shares, reverse=True)
    assert found.settings == {"norm": "l1", "width": 16, "purifier": "midpoints", "dither": "lattice"}
    floats = certify(BentLinear(64), images.float() / 255, labels, width=16, purifier="midpoints")
    assert torch.equal(floats.counts, found.counts)
    assert certify(BentLinear(64), images[0], [0], width=3, purifier="midpoints").counts.shape == (1, 3)


def test_named_guesses_are_those_of_their_functions_with_all_options():
    """A vote of each: the settings that a certificate names are those that it was computed with."""
    model, images, width = trained_model((4, 4), 1, 8, 1), real_images(1, (4, 4), 2), 12
    decode = {"model": model, "engine": QUICK, "precision": "fp32", "threads": 1}
    starts = torch.arange(width).reshape(-1, 1, 1, 1) + shifts((1, 4, 4), width, "random", 7)
    classifier = BentLinear(16, scale=30.0)
    for purifier in ("pixeldefend", "sample"):
        found = certify(classifier, images, [0, 1], width=width, purifier=purifier, dither="random", seed=7, **decode)
        for image, counts in zip(images, found.counts, strict=True):
            within = cells(image, width, starts)
            if purifier == "sample":
                guessed = pxfast.sample(width, seed=7, within=within, **decode)
            else:
                guessed = pxfast.purify(image.expand(width, 1, 4, 4), within=within, **decode)
            assert torch.equal(classifier(guessed / 255.0).argmax(1).bincount(minlength=3), counts)
        made = {"norm": "l1", "width": width, "purifier": purifier, "dither": "random", "seed": 7}
        assert found.settings == made | arithmetic_of(QUICK, "fp32")
    lattice = certify(classifier, images, [0, 1], width=width, purifier="sample", seed=7, **decode)
    assert lattice.settings["seed"] == 7


@pytest.mark.parametrize("purifier", ["pixeldefend", "sample"])
def test_guesses_are_made_by_the_engine_and_the_precision_that_are_asked_for(monkeypatch, purifier):
    """Whether others would give other images depends on the machine."""
    asked, name = [], "purify" if purifier == "pixeldefend" else "sample"
    real = getattr(guesses, name)
    monkeypatch.setattr(guesses, name, lambda *given, **options: asked.append(options) or real(*given, **options))
    decode = {"engine": QUICK, "precision": "fp32", "threads": 1}
    certify(
        BentLinear(16),
        real_images(1, (4, 4), 1),
        [0],
        width=3,
        purifier=purifier,
        model=trained_model((4, 4), 1, 8, 1),
        **decode,
    )
    assert [{key: each[key] for key in decode} for each in asked] == [decode]


def test_a_function_is_called_by_its_name_in_the_settings():
    found = certify(BentLinear(64), torch.zeros(1, 1, 8, 8), [0], width=2, purifier=midpoints)
    assert found.settings["purifier"] == "midpoints"


def test_logits_that_are_no_numbers_are_no_votes():
    """The classifier is tried with the first image alone; NaN would vote for a class."""

    class Undefined(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            values = images.flatten(1)
            return torch.where(values == 100 / 255, torch.nan, values)

    images = torch.tensor([[[[200, 240]]], [[[100, 0]]]], dtype=torch.uint8)
    with pytest.raises(ValueError, match="expected finite logits from the classifier"):
        certify(Undefined().eval(), images, [0, 1], width=1, purifier="midpoints")


def partly_training() -> nn.Module:
    network = nn.Sequential(BentLinear(64), nn.Dropout()).eval()
    network[1].train()
    return network


def test_no_images_and_a_classifier_of_its_own_kind():
    found = certify(BentLinear(64), torch.zeros(0, 1, 8, 8), [], purifier="midpoints")
    assert len(found.radii) == 0
    assert found.accuracy != found.accuracy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": [0, 1]}, ValueError, "expected labels"),
        ({"labels": [3]}, ValueError, "labels in 0..2"),
        ({"images": torch.zeros(0, 1, 8, 8)}, ValueError, r"expected labels \(0,\)"),
        ({"purifier": "median"}, ValueError, "purifier must be one of pixeldefend, midpoints, sample, or a function"),
        ({"purifier": 3}, TypeError, "purifier must be one of"),
        ({"purifier": lambda lower, upper: lower.numpy()}, TypeError, "expected the purifier to give images"),
        ({"purifier": lambda lower, upper: lower[:1]}, ValueError, r"expected the purifier to give images \(32"),
        ({"purifier": lambda lower, upper: lower.repeat(1, 3, 1, 1)}, ValueError, r"got \(32, 3, 8, 8\)"),
        (
            {"classifier": BentLinear(64).train()},
            ValueError,
            "needs a classifier in eval mode, and the classifier is in",
        ),
        (
            {"classifier": partly_training()},
            ValueError,
            "in eval mode, and 1 is in training mode",
        ),
        ({"classifier": "resnet"}, TypeError, "classifier must be of Module"),
        ({"images": torch.zeros(8, 8)}, ValueError, "expected a torch tensor or NumPy array"),
        ({"images": torch.full((1, 1, 8, 8), float("nan"))}, ValueError, "NaN"),
        ({"views": "both"}, ValueError, "views must be one of one, flip, got 'both'"),
        ({"dither": "blue"}, ValueError, "dither must be one of lattice, random, got 'blue'"),
        ({"engine": "abacus"}, ValueError, "unknown engine"),
    ],
)
def test_wrong_requests(change, error, message):
    right = {
        "classifier": BentLinear(64).eval(),
        "images": torch.zeros(1, 1, 8, 8),
        "labels": [0],
        "purifier": "midpoints",
    }
    with pytest.raises(error, match=message):
        certify(**{**right, **change})


def test_labels_that_the_classifier_does_not_know_are_named_before_any_work(monkeypatch):
    def never(*given: object, **options: object) -> Tensor:
        raise AssertionError("purified")

    monkeypatch.setattr("pxfast.certification.guesses.purify", never)
    options = {"width": 5, "model": trained_model((4, 4), 1, 8, 1), "engine": QUICK}
    with pytest.raises(ValueError, match=r"labels in 0\.\.2, the classifier's 3 classes, got 7"):
        certify(BentLinear(16), real_images(1, (4, 4), 2), [0, 7], **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_classifier_of_another_type_gets_its_own(dtype):
    images, other = real_images(1, (8, 8), 2), BentLinear(64).to(dtype)

    class Cast(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = other(images.to(dtype))
            return logits

    found, expected = (certify(each, images, [0, 1], width=16, purifier="midpoints") for each in (other, Cast().eval()))
    assert torch.equal(found.counts, expected.counts)


# --- kept guesses ---


@pytest.mark.parametrize("purifier", ["pixeldefend", "sample"])
def test_kept_guesses_certify_another_classifier_without_purifying_again(tmp_path, monkeypatch, purifier):
    images = real_images(1, (4, 4), 3)
    options = {"width": 5, "purifier": purifier, "model": trained_model((4, 4), 1, 8, 1), "engine": QUICK}
    options["precision"] = "fp32"
    plain = certify(BentLinear(16, 1), images, [0, 1, 2], **options)
    first = certify(BentLinear(16, 0), images[:1], [0], keep=tmp_path / "kept", **options)
    assert torch.equal(first.counts, certify(BentLinear(16, 0), images[:1], [0], **options).counts)
    files = sorted((tmp_path / "kept").rglob("*.safetensors"))
    assert len(files) == 1, "one file an image"
    again = {"keep": tmp_path / "kept", **options}
    assert torch.equal(certify(BentLinear(16, 1), images, [0, 1, 2], **again).counts, plain.counts)
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 3

    def never(*given: object, **options: object) -> Tensor:
        raise AssertionError("purified again")

    monkeypatch.setattr("pxfast.certification.guesses.purify", never)
    monkeypatch.setattr("pxfast.certification.guesses.sample", never)
    kept = certify(BentLinear(16, 1), images, [0, 1, 2], **again)
    assert torch.equal(kept.counts, plain.counts)
    other = (
        {"width": 4},
        {"model": trained_model((4, 4), 1, 8, 1, steps=4)},
        {"dither": "random"},
        {"precision": "bf16"},
    )
    drawn = purifier == "sample"  # a likeliest image is the same with every seed
    for change in (*other, {"purifier": "pixeldefend" if drawn else "sample"}, *[{"seed": 1}] * drawn):
        with pytest.raises(AssertionError, match="again"):
            certify(BentLinear(16, 1), images, [0, 1, 2], **again | change)
    if not drawn:
        assert torch.equal(certify(BentLinear(16, 1), images, [0, 1, 2], **again, seed=1).counts, plain.counts)
    elsewhere = {"engine": "cpu", "instructions": "another set"}
    for module, name, value in (
        (splitting, "arithmetic_of", lambda *given: {**arithmetic_of(*given), **elsewhere}),
        (guesses, "__version__", "another"),
    ):
        with monkeypatch.context() as there:
            there.setattr(module, name, value)
            with pytest.raises(AssertionError, match="again"):
                certify(BentLinear(16, 1), images, [0, 1, 2], **again)
    files[0].write_bytes(files[0].read_bytes()[:-3])  # a damaged one is made again
    with pytest.raises(AssertionError, match="again"):
        certify(BentLinear(16, 1), images, [0, 1, 2], **again)


@pytest.mark.parametrize(
    ("keep", "purifier", "error", "message"),
    [
        (3, "pixeldefend", TypeError, "keep"),
        ("kept", "midpoints", ValueError, "only guesses of pixeldefend and sample are kept"),
        ("kept", midpoints, ValueError, "only guesses of pixeldefend and sample are kept"),
        ("file/kept", "pixeldefend", NotADirectoryError, "file is not a folder"),
    ],
)
def test_where_guesses_cannot_be_kept(tmp_path, monkeypatch, keep, purifier, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        certify(
            BentLinear(16),
            real_images(1, (4, 4), 1),
            [0],
            width=4,
            purifier=purifier,
            model=trained_model((4, 4), 1, 8, 1),
            keep=keep,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("guess", "error", "message"),
    [
        (lambda lower, upper: (lower.int() + upper.int()) // 2, TypeError, "uint8 or floating, got torch.int32"),
        (lambda lower, upper: (lower.float() + upper.float()) / 2, ValueError, r"must be in \[0, 1\], got values from"),
    ],
)
def test_guesses_in_0_to_255_are_uint8(guess, error, message):
    with pytest.raises(error, match=message):
        certify(BentLinear(16), real_images(1, (4, 4), 1), [0], width=4, purifier=guess)


def test_a_model_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="a model means nothing to purifier='midpoints'"):
        certify(BentLinear(16), real_images(1, (4, 4), 1), [0], width=4, purifier="midpoints", model="cifar10")


# --- classifiers that look at their batch ---


class Rescaled(nn.Module):
    """Logits over the largest value of the whole batch, as a scale that is found at run time has it."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2] / images.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()), "and 0 normalises by its batch"),
        (Rescaled(), "and those of the first image do"),
    ],
)
def test_a_classifier_that_looks_at_its_batch_has_no_certificate(classifier: nn.Module, message: str) -> None:
    """One changed cell would move the votes of every offset in the batch, and the radius would be false."""
    images = torch.tensor([[[[3, 40]]]], dtype=torch.uint8)
    for method, options in ((certify, {"width": 4, "purifier": "midpoints"}), (certify_l2, {"samples": 3})):
        with pytest.raises(ValueError, match=f"depend on no other image of the batch, {message}"):
            method(classifier.eval(), images, [0], **options)
    alone = nn.Sequential(nn.InstanceNorm2d(1), nn.Flatten()).eval()
    assert len(certify(alone, images, [0], width=4, purifier="midpoints").radii) == 1


def test_a_model_file_is_read_once(tmp_path, monkeypatch) -> None:
    """A training may replace it meanwhile."""
    path, read = tmp_path / "model.safetensors", []
    pxfast.save(random_model((8, 8)), path)
    real = shipped.SHIPPED.read
    monkeypatch.setattr(shipped.SHIPPED, "read", lambda name: read.append(name) or real(name))
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"model": path, "purifier": "pixeldefend", "engine": QUICK}
    certify(BentLinear(64), images, [0, 0, 0], width=3, keep=tmp_path / "kept", **options)
    assert len(read) == 1
    certify_l2(BentLinear(64), images, [0, 0, 0], samples=4, first_samples=2, **options)
    assert len(read) == 2
