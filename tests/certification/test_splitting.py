"""The deterministic L1 certificate: its arithmetic exhaustively, and no attack beats it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from support.engines import QUICK
from support.helpers import noisy, random_model, real_images, trained_model
from torch import Tensor, nn

import pxfast
from pxfast.certification import cells, certify, certify_l2, radii_of, shifts, splitting
from pxfast.engines.arithmetic import arithmetic_of
from pxfast.pixelcnn import shipped
from pxfast.pixeldefend.cells import midpoints

WIDTHS = (1, 2, 3, 7, 16, 32, 64, 132, 255, 256, 257, 300)


class Linear(nn.Module):
    """Three classes by random projections of the image, bent."""

    def __init__(self, inputs: int, seed: int = 0, scale: float = 8.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(inputs, 3, generator=generator), requires_grad=False)
        self.scale = scale
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin(self.scale * (images.flatten(1) - 0.5) @ self.weight)


def scrambled(lower: Tensor, upper: Tensor) -> Tensor:
    """A worst case of a guess: nothing that is near in the cells is near in it."""
    mixed = (lower.long() * 7919 + upper.long() * 104729) % 251
    return mixed.roll(1, dims=-1).mul(mixed).add(31 * mixed).remainder(256).byte()


# --- cells ---


@pytest.mark.parametrize(
    "width", [pytest.param(width, marks=[pytest.mark.whole] * (width in (256, 300))) for width in WIDTHS]
)
def test_a_change_of_d_grey_levels_alters_the_cell_at_d_offsets_at_most(width):
    """For all 256 x 256 pairs of values, all offsets and every shift: d offsets exactly, until all are altered."""
    values = torch.arange(256, dtype=torch.uint8)
    for shift in {0, 1, width // 3, width - 1}:
        starts = (torch.arange(width) + shift)[:, None]
        lower, upper = cells(values.expand(width, 256), width, starts)
        assert ((lower <= values) & (values <= upper)).all(), "a value lies in its cell"
        assert (upper.int() - lower.int() < width).all()
        altered = torch.zeros(256, 256, dtype=torch.int64)
        for low, high in zip(lower, upper, strict=True):
            other = (low[:, None] != low) | (high[:, None] != high)
            assert torch.equal(other, (low[:, None] != low) & (high[:, None] != high)), "either end tells the cell"
            altered += other
        distance = (values.int()[:, None] - values.int()).abs()
        assert torch.equal(altered, distance.clamp(max=width))


@pytest.mark.parametrize(
    ("dither", "first", "least"),
    [("lattice", [0, 18, 4, 22, 8, 27], 94), ("random", [12, 31, 0, 25, 29, 14], 60)],
)
def test_shifts_are_fixed_known_and_spread(dither, first, least):
    found = shifts((3, 32, 32), 32, dither)
    assert found.shape == (3, 32, 32)
    assert torch.equal(found, shifts((3, 32, 32), 32, dither, 0))
    assert torch.equal(found, shifts((3, 32, 32), 32, dither, 1)) == (dither == "lattice")
    assert found.flatten()[:6].tolist() == first  # the same on every machine, for ever
    assert (int(found.min()), int(found.max())) == (0, 31)
    assert found.flatten().bincount(minlength=32).min() >= least  # of 96 on average


def test_neighbours_tell_more_of_real_images_by_the_lattice():
    """The mean of 5 x 5 midpoints is nearer to that of the image, at every offset that is tried."""
    images = real_images(3, (32, 32), 8)
    error = {}
    for dither in ("lattice", "random"):
        starts = torch.arange(0, 132, 12).reshape(-1, 1, 1, 1, 1) + shifts((3, 32, 32), 132, dither)
        seen = midpoints(*cells(images[None], 132, starts))
        difference = (seen - images / 255).flatten(0, 1)
        error[dither] = nn.functional.avg_pool2d(difference, 5).square().mean()
    assert error["lattice"] < 0.9 * error["random"]


def test_two_views_vote_by_the_mean_probability_of_a_guess_and_its_mirror_image():
    images, width = real_images(1, (8, 8), 3), 20
    classifier = Linear(64, scale=30.0)
    found = certify(classifier, images, [0, 1, 2], width=width, purifier="midpoints", views="flip")
    starts = torch.arange(width).reshape(-1, 1, 1, 1) + shifts((1, 8, 8), width)
    for image, counts in zip(images, found.counts, strict=True):
        seen = midpoints(*cells(image, width, starts))
        mean = classifier(seen).softmax(1) + classifier(seen.flip(3)).softmax(1)
        assert torch.equal(mean.argmax(1).bincount(minlength=3), counts)
    one = certify(classifier, images, [0, 1, 2], width=width, purifier="midpoints")
    assert not torch.equal(one.counts, found.counts)
    assert found.settings == {**one.settings, "views": "flip"}


@pytest.mark.parametrize("dither", ["lattice", "random"])
def test_the_dither_is_part_of_what_was_computed(dither):
    found = certify(Linear(64), torch.zeros(1, 1, 8, 8), [0], purifier="midpoints", dither=dither, seed=7)
    assert found.settings["dither"] == dither
    assert ("seed" in found.settings) == (dither == "random")


# --- radii ---


def label_of(counts: Sequence[int]) -> int:
    return counts.index(max(counts))


@pytest.mark.parametrize("votes", [1, 2, 5, 6])
def test_the_radius_is_the_largest_number_of_votes_that_may_move(votes):
    """For all counts of three classes against all others: no r votes change the label, and some r + 1 do."""
    everything = [c for c in itertools.product(range(votes + 1), repeat=3) if sum(c) == votes]
    predictions, radii = radii_of(torch.tensor(everything))
    for counts, prediction, radius in zip(everything, predictions.tolist(), radii.tolist(), strict=True):
        assert prediction == label_of(counts)
        needed = [
            sum(abs(a - b) for a, b in zip(counts, other, strict=True)) // 2
            for other in everything
            if label_of(other) != prediction
        ]
        assert radius == min(needed) - 1, (counts, radius)


def test_ties_go_to_the_smallest_class_and_cost_the_larger_one_a_vote():
    predictions, radii = radii_of(torch.tensor([[4, 4, 0], [0, 4, 4], [3, 5, 0], [5, 3, 0], [0, 32, 0], [32, 0, 0]]))
    assert predictions.tolist() == [0, 1, 1, 0, 1, 0]
    assert radii.tolist() == [0, 0, 0, 1, 15, 16]


# --- all images of two sub-pixels ---


@pytest.mark.parametrize(
    ("width", "guess"),
    [
        pytest.param(
            width, guess, marks=[pytest.mark.whole] * ((width, guess) not in ((5, scrambled), (16, midpoints)))
        )
        for guess in (midpoints, scrambled)
        for width in (5, 16, 33)
    ],
)
def test_no_image_of_two_sub_pixels_breaks_a_certificate(width, guess):
    """All 256 x 256 images, and each against all others: the label is the same wherever the radius reaches."""
    side = torch.arange(256)
    images = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 1, 1, 2).byte()
    classifier = Linear(2, seed=1, scale=30.0)
    counts = torch.zeros(len(images), 3, dtype=torch.int64)
    starts = shifts((1, 1, 2), width)
    for offset in range(width):
        guessed = guess(*cells(images, width, starts + offset))
        guessed = guessed.float() / 255 if guessed.dtype == torch.uint8 else guessed
        counts += nn.functional.one_hot(classifier(guessed).argmax(1), 3)
    predictions, radii = (each.reshape(256, 256) for each in radii_of(counts))
    assert len(predictions.unique()) == 3
    broken_beyond = 0
    for dx in range(-width, width + 1):
        for dy in range(-width + abs(dx), width - abs(dx) + 1):
            here = slice(max(0, -dx), 256 - max(0, dx)), slice(max(0, -dy), 256 - max(0, dy))
            there = slice(max(0, dx), 256 + min(0, dx)), slice(max(0, dy), 256 + min(0, dy))
            altered = predictions[here] != predictions[there]
            distance = abs(dx) + abs(dy)
            assert not (altered & (radii[here] >= distance)).any(), (dx, dy)
            broken_beyond += int((altered & (radii[here] == distance - 1)).sum())
    assert int(radii.max()) >= 1
    assert broken_beyond > 0, "one grey level further some label changes: the radius is no smaller than need be"
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:20]
    found = certify(classifier, images[some], [0] * 20, width=width, purifier=guess)
    assert torch.equal(found.counts, counts[some])
    assert torch.equal(found.predictions, predictions.flatten()[some])
    assert torch.equal(found.radii, radii.flatten()[some].double())


# --- what a guess may know ---


class Spy(nn.Module):
    """A classifier that keeps what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 6, 3)).eval()
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        self.given.append(logits)
        return logits


def model_of(purifier: str, model: object) -> object:
    """Midpoints need no model, and take none."""
    return None if purifier == "midpoints" else model


@pytest.mark.parametrize("purifier", ["pixeldefend", "sample", "midpoints"])
def test_equal_cells_give_equal_bits_whatever_else_differs(purifier):
    """Two images that share their cells at some offsets: there all logits are equal, bit for bit; nothing leaks."""
    torch.manual_seed(0)
    model, classifier = trained_model((8, 8), 1, 8, 1), Spy().eval()
    width, options = 24, {"width": 24, "purifier": purifier, "model": model_of(purifier, model), "engine": QUICK}
    image = noisy(real_images(1, (8, 8), 1))
    other = image.clone()
    for place in ((0, 0), (3, 4), (7, 7)):
        other[0, 0][place] = image[0, 0][place] ^ 3
    starts = torch.arange(width).reshape(-1, 1, 1, 1) + shifts((1, 8, 8), width)
    same = torch.stack(
        [
            torch.stack([a == b for a, b in zip(cells(image, width, s), cells(other, width, s), strict=True)]).all()
            for s in starts
        ]
    )
    assert 5 < int(same.sum()) < width
    logits = []
    for one in (image, other):
        classifier.given.clear()
        certify(classifier, one, [0], **options)
        logits.append(classifier.given[-1][:width])  # batches before tell what the classifier is
    assert torch.equal(logits[0][same], logits[1][same])
    assert not torch.equal(logits[0][~same], logits[1][~same])


def test_an_image_is_certified_as_in_any_batch():
    model, classifier = trained_model((8, 8), 3, 8, 1), Linear(192, scale=0.5)
    images = noisy(real_images(3, (8, 8), 7))
    for purifier in ("pixeldefend", "sample"):
        options = {"width": 20, "purifier": purifier, "model": model, "engine": QUICK}
        whole = certify(classifier, images, [0] * 7, **options)
        alone = certify(classifier, images[4:5], [0], **options)
        assert torch.equal(alone.counts[0], whole.counts[4])


# --- attacks ---


@pytest.fixture(scope="module")
def real_case() -> tuple[nn.Module, Tensor, dict[str, object]]:
    """A classifier of 4 x 4 crops that is unsure of them, crops, and how they are certified."""
    options = {"width": 16, "model": trained_model((4, 4), 1, 8, 1), "engine": QUICK, "precision": "fp32"}
    return Linear(16, seed=2, scale=1.5), real_images(1, (4, 4), 24), options


@pytest.mark.parametrize("purifier", ["pixeldefend", "midpoints", pytest.param("sample", marks=pytest.mark.whole)])
def test_no_pair_of_sub_pixels_and_no_greedy_attack_beats_a_certificate(real_case, purifier):
    classifier, images, options = real_case
    options = {**options, "purifier": purifier, "model": model_of(purifier, options["model"])}
    found = certify(classifier, images, [0] * len(images), **options)
    assert len(found.predictions.unique()) > 1
    attackable = ((found.radii >= 1) & (found.radii <= 4)).nonzero()[:, 0].tolist()[:1]
    assert attackable
    broken_beyond = 0
    for n in attackable:
        radius, label = int(found.radii[n]), int(found.predictions[n])
        if purifier == "midpoints":
            for total in (radius, radius + 2):
                pairs = pairs_of(images[n], total)
                labels = certify(classifier, pairs, [0] * len(pairs), **options).predictions
                assert total > radius or (labels == label).all()
                broken_beyond += int((labels != label).sum()) if total > radius else 0
        attacked = greedy_attack(classifier, images[n], label, radius, options)
        assert int((attacked.int() - images[n].int()).abs().sum()) == radius
        assert certify(classifier, attacked[None], [0], **options).predictions.item() == label
        further = greedy_attack(classifier, images[n], label, 4 * radius + 12, options)
        broken_beyond += int(certify(classifier, further[None], [0], **options).predictions.item() != label)
    assert broken_beyond > 0, "beyond the radius the attacks do succeed"


def pairs_of(image: Tensor, total: int) -> Tensor:
    """All images that differ from one (1, 4, 4) in two sub-pixels, by ``total`` grey levels together."""
    found = []
    for i, j in itertools.combinations(range(16), 2):
        for first in range(total + 1):
            for signs in itertools.product((-1, 1), repeat=2):
                changed = image.flatten().int()
                changed[i] += signs[0] * first
                changed[j] += signs[1] * (total - first)
                if int(changed.min()) >= 0 and int(changed.max()) <= 255:
                    found.append(changed.byte().reshape(1, 4, 4))
    return torch.stack(found).unique(dim=0)


def greedy_attack(classifier: nn.Module, image: Tensor, label: int, budget: int, options: dict) -> Tensor:
    """``budget`` steps of one grey level, each the one that leaves the label the fewest votes over the next class."""
    for _ in range(budget):
        steps = torch.cat((torch.eye(16), -torch.eye(16))).reshape(-1, 1, 4, 4).int()
        candidates = image.int() + steps
        candidates = candidates[((candidates >= 0) & (candidates <= 255)).flatten(1).all(1)].byte()
        counts = certify(classifier, candidates, [0] * len(candidates), **options).counts
        others = counts.clone()
        others[:, label] = -1
        image = candidates[(counts[:, label] - others.amax(1)).argmin()]
        if label_of(counts[(counts[:, label] - others.amax(1)).argmin()].tolist()) != label:
            break
    return image


# --- the door ---


def test_the_result_says_what_holds():
    images = noisy(real_images(1, (8, 8), 6))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    found = pxfast.certify(Linear(64), images.numpy(), labels, width=16, purifier="midpoints")
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
    floats = certify(Linear(64), images.float() / 255, labels, width=16, purifier="midpoints")
    assert torch.equal(floats.counts, found.counts)
    assert certify(Linear(64), images[0], [0], width=3, purifier="midpoints").counts.shape == (1, 3)


def test_no_images_and_a_classifier_of_its_own_kind():
    found = certify(Linear(64), torch.zeros(0, 1, 8, 8), [], purifier="midpoints")
    assert len(found.radii) == 0
    assert found.accuracy != found.accuracy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": [0, 1]}, ValueError, "expected labels"),
        ({"labels": [3]}, ValueError, "labels in 0..2"),
        ({"purifier": "median"}, ValueError, "purifier must be one of pixeldefend, midpoints, sample, or a function"),
        ({"purifier": 3}, TypeError, "purifier must be one of"),
        ({"purifier": lambda lower, upper: lower.numpy()}, TypeError, "expected the purifier to give images"),
        ({"purifier": lambda lower, upper: lower[:1]}, ValueError, r"expected the purifier to give images \(32"),
        ({"classifier": Linear(64).train()}, ValueError, "needs a classifier in eval mode, and the classifier is in"),
        ({"classifier": "resnet"}, TypeError, "classifier must be of Module"),
        ({"images": torch.zeros(8, 8)}, ValueError, "expected a torch tensor or NumPy array"),
        ({"images": torch.full((1, 1, 8, 8), float("nan"))}, ValueError, "NaN"),
        ({"views": "both"}, ValueError, "views must be one of one, flip, got 'both'"),
        ({"dither": "blue"}, ValueError, "dither must be one of lattice, random, got 'blue'"),
        ({"engine": "abacus"}, ValueError, "unknown engine"),
    ],
)
def test_wrong_requests(change, error, message):
    right = {"classifier": Linear(64).eval(), "images": torch.zeros(1, 1, 8, 8), "labels": [0], "purifier": "midpoints"}
    with pytest.raises(error, match=message):
        certify(**{**right, **change})


def test_labels_that_the_classifier_does_not_know_are_named_before_any_work(monkeypatch):
    def never(*given: object, **options: object) -> Tensor:
        raise AssertionError("purified")

    monkeypatch.setattr("pxfast.certification.guesses.purify", never)
    options = {"width": 5, "model": trained_model((4, 4), 1, 8, 1), "engine": QUICK}
    with pytest.raises(ValueError, match=r"labels in 0\.\.2, the classifier's 3 classes, got 7"):
        certify(Linear(16), real_images(1, (4, 4), 2), [0, 7], **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_classifier_of_another_type_gets_its_own(dtype):
    images, other = real_images(1, (8, 8), 2), Linear(64).to(dtype)

    class Cast(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = other(images.to(dtype))
            return logits

    found, expected = (certify(each, images, [0, 1], width=16, purifier="midpoints") for each in (other, Cast().eval()))
    assert torch.equal(found.counts, expected.counts)


# --- kept guesses ---


@pytest.mark.parametrize("purifier", ["pixeldefend", "sample"])
def test_kept_guesses_certify_another_classifier_without_purifying_again(tmp_path, monkeypatch, purifier):
    images = real_images(1, (4, 4), 2)
    options = {"width": 5, "purifier": purifier, "model": trained_model((4, 4), 1, 8, 1), "engine": QUICK}
    plain = certify(Linear(16, 1), images, [0, 1], **options)
    first = certify(Linear(16, 0), images[:1], [0], keep=tmp_path / "kept", **options)
    assert torch.equal(first.counts, certify(Linear(16, 0), images[:1], [0], **options).counts)
    files = sorted((tmp_path / "kept").rglob("*.safetensors"))
    assert len(files) == 1, "one file an image"
    assert torch.equal(certify(Linear(16, 1), images, [0, 1], keep=tmp_path / "kept", **options).counts, plain.counts)
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 2

    def never(*given: object, **options: object) -> Tensor:
        raise AssertionError("purified again")

    monkeypatch.setattr("pxfast.certification.guesses.purify", never)
    monkeypatch.setattr("pxfast.certification.guesses.sample", never)
    kept = certify(Linear(16, 1), images, [0, 1], keep=tmp_path / "kept", **options)
    assert torch.equal(kept.counts, plain.counts)
    for change in ({"width": 4}, {"model": trained_model((4, 4), 1, 8, 1, steps=4)}, {"dither": "random"}):
        with pytest.raises(AssertionError, match="again"):
            certify(Linear(16, 1), images, [0, 1], keep=tmp_path / "kept", **options | change)
    other = {"engine": "cpu", "instructions": "another set"}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(splitting, "arithmetic_of", lambda *given: {**arithmetic_of(*given), **other})
        with pytest.raises(AssertionError, match="again"):
            certify(Linear(16, 1), images, [0, 1], keep=tmp_path / "kept", **options)
    files[0].write_bytes(files[0].read_bytes()[:-3])  # a damaged one is made again
    with pytest.raises(AssertionError, match="again"):
        certify(Linear(16, 1), images, [0, 1], keep=tmp_path / "kept", **options)


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
            Linear(16),
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
        certify(Linear(16), real_images(1, (4, 4), 1), [0], width=4, purifier=guess)


def test_a_model_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="a model means nothing to purifier='midpoints'"):
        certify(Linear(16), real_images(1, (4, 4), 1), [0], width=4, purifier="midpoints", model="cifar10")


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
    certify(Linear(64), images, [0, 0, 0], width=3, keep=tmp_path / "kept", **options)
    assert len(read) == 1
    certify_l2(Linear(64), images, [0, 0, 0], samples=4, first_samples=2, **options)
    assert len(read) == 2
