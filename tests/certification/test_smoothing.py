"""Randomised smoothing: the bounds, and radii that are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom, binomtest, norm
from support.engines import QUICK
from support.helpers import real_images, trained_model
from support.own_classifiers import BentLinear
from torch import Tensor, nn

import pxfast
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.certification import certify_l2, smoothing
from pxfast.certification.smoothing import clopper_pearson, l2_radii
from pxfast.engines.arithmetic import arithmetic_of


class Halves(nn.Module):
    """Two classes, divided by a plane: the smoothed classifier's radius is the distance from it."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        direction = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.normal = nn.Parameter(direction / direction.norm(), requires_grad=False)
        self.offset = 0.0

    def distance(self, images: Tensor) -> Tensor:
        return (images.double() * self.normal).flatten(1).sum(1) - self.offset

    def forward(self, images: Tensor) -> Tensor:
        found = self.distance(images)
        return torch.stack((-found, found), 1)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (7, 10), (10, 10), (99, 100), (990, 1000)])
def test_clopper_pearson_is_the_exact_bound(successes, trials):
    bound = clopper_pearson(successes, trials, 0.001)
    test = binomtest(successes, trials, alternative="greater")
    assert bound == pytest.approx(test.proportion_ci(0.999, method="exact").low, abs=1e-12)
    if successes:
        assert binom.sf(successes - 1, trials, bound) == pytest.approx(0.001, rel=1e-6)


def test_radii_are_the_papers():
    """sigma Phi^-1(alpha^(1/n)) where all n agree (Cohen et al., section 3.2.2), and abstention below one half."""
    counts = torch.tensor([[1000, 0], [0, 1000], [501, 499], [400, 600]])
    predictions, radii = l2_radii(counts, torch.tensor([0, 1, 0, 0]), 0.5, 0.001)
    assert predictions.tolist() == [0, 1, -1, -1]
    largest = 0.5 * norm.ppf(0.001 ** (1 / 1000))
    assert radii.tolist() == [pytest.approx(largest), pytest.approx(largest), 0.0, 0.0]
    counts, tops = torch.tensor([[1000, 0], [290, 210], [210, 290]]), torch.tensor([0, 0, 0])
    predictions, radii = l2_radii(counts, tops, 0.5, 0.001)
    assert predictions.tolist() == [0, 0, -1], "the bound of each is by its own votes, and of the label that was chosen"
    bound = binomtest(290, 500, alternative="greater").proportion_ci(0.999, method="exact").low
    assert 0.5 < bound < 0.55
    assert radii.tolist() == [pytest.approx(largest), pytest.approx(0.5 * norm.ppf(bound)), 0.0]
    (huge,) = l2_radii(torch.tensor([[100_000, 0]]), torch.tensor([0]), 1.0, 0.001)[1].tolist()
    assert huge == pytest.approx(3.811, abs=1e-3)  # "4 sigma" in the paper's figure of N = 100,000
    (careless,) = l2_radii(torch.tensor([[1000, 0]]), torch.tensor([0]), 1.0, math.nextafter(1.0, 0.0))[1].tolist()
    assert math.isfinite(careless)


def test_radii_stay_below_the_true_distance_and_come_near_it():
    images = real_images(1, (8, 8), 12)
    classifier = Halves((1, 8, 8)).eval()
    classifier.offset = float(classifier.distance(images.float() / 255).median())
    distances = classifier.distance(images.float() / 255)
    sigma = float(distances.abs().median())
    found = certify_l2(classifier, images, (distances > 0).long(), sigma=sigma, samples=2000)
    held = found.predictions >= 0
    assert held.sum() >= 9
    assert (found.radii <= distances.abs()).all()
    middle = held & (distances.abs() < 1.5 * sigma)
    assert (found.radii[middle] > 0.6 * distances.abs()[middle]).all()
    assert torch.equal(found.predictions[held], (distances > 0).long()[held])
    assert found.certified_accuracy(0.0) == float(held.double().mean())


def test_an_image_is_certified_as_in_any_batch_and_by_its_seed():
    images, classifier = real_images(1, (8, 8), 4), Halves((1, 8, 8)).eval()
    options = {"sigma": 0.5, "samples": 200, "first_samples": 20}
    whole = certify_l2(classifier, images, [0] * 4, **options)
    assert torch.equal(certify_l2(classifier, images[2:3], [0], **options).counts[0], whole.counts[2])
    assert not torch.equal(certify_l2(classifier, images, [0] * 4, **options, seed=1).counts, whole.counts)
    assert whole.counts.sum(1).tolist() == [200] * 4


def test_the_copies_that_are_counted_are_others_than_those_that_choose_the_label():
    """Or the bound would be of a label that was chosen because these very copies have it."""
    images, seen = real_images(1, (8, 8), 2), []
    found = certify_l2(
        BentLinear(64),
        images,
        [0, 0],
        sigma=0.5,
        samples=130,
        first_samples=7,
        purifier=lambda noisy: seen.append(noisy) or noisy,
    )
    assert [len(noisy) for noisy in seen] == [7, 128, 2] * 2
    assert found.counts.sum(1).tolist() == [130, 130]
    noise = torch.cat([torch.cat(seen[:3]) - images[0] / 255.0, torch.cat(seen[3:]) - images[1] / 255.0])
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    near = torch.cdist(noise.flatten(1), noise.flatten(1)) + 100 * torch.eye(len(noise))
    assert float(near.min()) > 1.0, "no two copies of any image have the same noise"

    def turning(noisy: Tensor) -> Tensor:
        """White where the label is chosen, black where it is counted."""
        return torch.full_like(noisy, float(len(noisy) == 7))

    classifier = Halves((1, 8, 8)).eval()
    classifier.offset = float(classifier.distance(torch.ones(1, 1, 8, 8))) / 2
    chosen = int(classifier(torch.ones(1, 1, 8, 8)).argmax())
    found = certify_l2(classifier, images[:1], [0], samples=100, first_samples=7, purifier=turning)
    assert found.counts[0, chosen] == 0
    assert found.predictions.tolist() == [-1]


def test_two_views_vote_by_the_mean_probability_of_a_copy_and_its_mirror_image():
    seen: list[Tensor] = []
    classifier, options = BentLinear(64), {"sigma": 0.5, "samples": 60, "first_samples": 3}
    found = certify_l2(
        classifier,
        real_images(1, (8, 8), 1),
        [0],
        views="flip",
        purifier=lambda noisy: seen.append(noisy) or noisy,
        **options,
    )
    one, both = (classifier(each).softmax(1) for each in (seen[1], seen[1].flip(3)))
    assert torch.equal((one + both).argmax(1).bincount(minlength=3), found.counts[0])
    assert not torch.equal(one.argmax(1).bincount(minlength=3), found.counts[0])
    assert found.settings["views"] == "flip"


def test_the_settings_are_all_that_the_result_depends_on(monkeypatch):
    """A run that goes on tells its own parts by them; and these are what purifies."""
    asked, real = [], smoothing.purify

    def asking(images: Tensor, eps: int, **options: object) -> Tensor:
        asked.append((eps, options["engine"], options["precision"], options["threads"]))
        return real(images, eps, **options)

    monkeypatch.setattr(smoothing, "purify", asking)
    images, classifier = real_images(1, (4, 4), 1), BentLinear(16)
    common = {"samples": 3, "first_samples": 2, "alpha": 0.01, "seed": 4}
    decode = {"model": trained_model((4, 4), 1, 8, 1), "engine": QUICK, "precision": "fp32", "threads": 1}
    for sigma, eps, expected in ((0.1, 7, 7), (0.1, None, 26), (1.5, None, 255)):
        options = {**common, "sigma": sigma, "purifier": "pixeldefend"}
        found = certify_l2(classifier, images, [0], eps=eps, **options, **decode)
        assert found.settings == {"norm": "l2", **options, "eps": expected, **arithmetic_of(QUICK, "fp32")}
        assert set(asked) == {(expected, QUICK, "fp32", 1)}
        asked.clear()
    score = ScoreNetwork(ScoreNetworkConfig((4, 4), 1, ngf=4)).eval()
    found = certify_l2(classifier, images, [0], sigma=1.5, purifier="adp", model=score, **common)
    assert found.settings == {"norm": "l2", **common, "sigma": 1.5, "purifier": "adp"}


def test_purifiers_stand_in_front_of_the_classifier():
    torch.manual_seed(0)
    images = real_images(1, (8, 8), 1)
    options = {"samples": 3, "first_samples": 2, "sigma": 0.1}
    given: list[Tensor] = []

    class Spy(Halves):
        def forward(self, images: Tensor) -> Tensor:
            given.append(images)
            return super().forward(images)

    classifier = Spy((1, 8, 8)).eval()
    certify_l2(classifier, images, [0], **options)
    noisy = given[-1][:3].float()  # the classifier's weights are of fp64, and so is what it gets
    assert float(noisy.min()) < 0.0 or float(noisy.max()) > 1.0 or float((255 * noisy).frac().abs().max()) > 0
    model = trained_model((8, 8), 1, 8, 1)
    certify_l2(classifier, images, [0], purifier="pixeldefend", model=model, engine=QUICK, precision="fp32", **options)
    expected = pxfast.purify(noisy.clamp(0, 1), round(25.5), model=model, engine=QUICK, precision="fp32")
    assert torch.equal(given[-1][:3].float(), expected)
    score = ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=4)).eval()
    certify_l2(classifier, images, [0], purifier="adp", model=score, **options)
    with torch.no_grad():
        step = (noisy + 0.1 * score(noisy)).clamp(0, 1)
    assert torch.allclose(given[-1][:3].float(), step, atol=1e-5)
    certify_l2(classifier, images, [0], purifier=lambda some: some.clamp(0.2, 0.3), **options)
    assert float(given[-1].max()) <= 0.3 + 1e-6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sigma": 0.0}, ValueError, "sigma must be a number in"),
        ({"alpha": 1.0}, ValueError, "alpha must be a number in"),
        ({"samples": 0}, ValueError, "samples must be an integer of at least 1"),
        ({"purifier": "magic"}, ValueError, "purifier must be one of none, adp, pixeldefend, or a function"),
        ({"labels": [0, 0]}, ValueError, "expected labels"),
        ({"labels": [2]}, ValueError, "labels in 0..1"),
    ],
)
def test_wrong_requests(change, error, message):
    right = {"classifier": Halves((1, 8, 8)).eval(), "images": torch.zeros(1, 1, 8, 8), "labels": [0], "samples": 2}
    with pytest.raises(error, match=message):
        certify_l2(**{**right, **change})


def test_labels_that_the_classifier_does_not_know_are_named_before_any_work():
    def never(noisy: Tensor) -> Tensor:
        raise AssertionError("purified")

    with pytest.raises(ValueError, match=r"labels in 0\.\.1, the classifier's 2 classes, got 7"):
        certify_l2(Halves((1, 8, 8)).eval(), real_images(1, (8, 8), 2), [0, 7], purifier=never)


def test_without_scipy_the_extra_is_named_before_any_work(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install 'pxfast\[evaluate\]'"):
        certify_l2(Halves((1, 8, 8)).eval(), torch.zeros(1, 1, 8, 8), [0])


@pytest.mark.parametrize(
    ("purifier", "error", "message"),
    [
        (lambda noisy: noisy.repeat(3, 1, 1, 1), ValueError, r"expected the purifier to give images \(8, 1, 8, 8\)"),
        (lambda noisy: noisy[:5], ValueError, r"got \(5, 1, 8, 8\)"),
        (lambda noisy: None, TypeError, "got NoneType"),
        (lambda noisy: (255 * noisy).int(), TypeError, "uint8 or floating, got torch.int32"),
    ],
)
def test_a_purifier_that_gives_other_images_is_refused(purifier, error, message):
    with pytest.raises(error, match=message):
        certify_l2(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(),
            torch.zeros(1, 1, 8, 8),
            [0],
            sigma=0.1,
            samples=8,
            first_samples=8,
            purifier=purifier,
        )


def test_a_purifier_may_give_uint8_and_work_in_place():
    def rounded(noisy: Tensor) -> Tensor:
        return (255 * noisy.clamp_(0, 1)).round()

    images, settings = real_images(1, (8, 8), 2), {"sigma": 0.2, "samples": 30, "first_samples": 10}
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    found = [
        certify_l2(network, images, [0, 1], purifier=purifier, **settings).counts
        for purifier in (lambda noisy: rounded(noisy).byte(), lambda noisy: rounded(noisy) / 255)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"purifier": "none", "eps": 3}, "eps=3 means nothing to purifier='none'"),
        ({"purifier": "none", "model": "cifar10"}, "a model means nothing to purifier='none'"),
        ({"purifier": nn.Identity(), "model": "cifar10"}, "a model means nothing to purifier='Identity'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        certify_l2(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), torch.zeros(1, 1, 8, 8), [0], sigma=0.1, **options
        )
