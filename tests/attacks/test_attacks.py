"""Every attack: on the grid and in its ball, the same alone and in a batch, and honest about rounding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.attack_network import attack_fixture
from support.small_defences import Noisy
from torch import Tensor, nn

from pxfast.attacks import (
    ADAPTIVE,
    ATTACKS,
    BIM,
    CWL2,
    DETECTION,
    FGSM,
    PAPER,
    PGD,
    REPRODUCTION,
    YARDSTICKS,
    Attack,
    AutoAttack,
    CWLinf,
    DeepFool,
    NoGradient,
    Rand,
    SaliencyMap,
    bim_steps,
    find_attack,
)
from pxfast.attacks.attack import BATCH, BLOCK, FixedBatch, image_generators, settled
from pxfast.attacks.rounding import rearm, to_grid
from pxfast.defences import Defended

FIXTURE = attack_fixture()
NEEDS = {
    "autoattack": ("pyautoattack",),
    "lbfgs": ("scipy",),
    **{attack.name: ("foolbox",) for attack in REPRODUCTION if attack.name not in ("saliency-map", "lbfgs")},
}
CHEAP = {
    "cw-l2": {"steps": 20, "binary_search_steps": 3, "learning_rate": 0.05, "initial_const": 1.0},
    "salt-and-pepper": {"steps": 20},
    "lbfgs": {"first_const": 0.1, "bisections": 1, "iterations": 15},
}
EPS = 20


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.external] * ("foolbox" in NEEDS.get(name, ())))
        for name in ATTACKS
        if name != "autoattack" and ATTACKS[name] not in (*ADAPTIVE, *DETECTION)
    ]
)
def attack(request: pytest.FixtureRequest) -> type[Attack]:
    for module in NEEDS.get(request.param, ()):
        pytest.importorskip(module, reason=f"{request.param} needs {module}")
    return ATTACKS[request.param]


def made(attack: type[Attack]) -> Attack:
    return find_attack(attack.name, **CHEAP.get(attack.name, {}))


def run(attack: type[Attack], images: Tensor, labels: Tensor | None, seed: int = 0):
    return made(attack).run(FIXTURE.network, images, labels, EPS if attack.bounded else None, seed=seed)


def test_names_and_groups() -> None:
    assert len(ATTACKS) == len(PAPER) + len(REPRODUCTION) + len(YARDSTICKS) + len(ADAPTIVE) + len(DETECTION) == 29
    assert len(REPRODUCTION) == 10
    assert [attack.name for attack in PAPER] == ["rand", "fgsm", "bim", "deepfool", "cw-l2", "cw-linf"]
    assert all(attack.bounded for attack in (*PAPER, *YARDSTICKS, *ADAPTIVE, *DETECTION))
    assert not any(attack.bounded for attack in REPRODUCTION)
    assert isinstance(find_attack("bim"), BIM)
    with pytest.raises(ValueError, match=r"'zoo'.*rand, fgsm, bim.*autoattack"):
        find_attack("zoo")


def test_stays_on_the_grid_and_in_its_ball_and_counts_rightly(attack: type[Attack]) -> None:
    before = FIXTURE.images.clone()
    result = run(attack, FIXTURE.images, FIXTURE.labels)
    assert torch.equal(FIXTURE.images, before)
    assert result.images.dtype == torch.uint8
    assert result.images.shape == before.shape
    if attack.bounded:
        assert int((result.images.int() - before.int()).abs().max()) <= EPS
    with torch.no_grad():
        wrong = FIXTURE.network(result.images.float() / 255).argmax(1) != FIXTURE.labels
    assert torch.equal(result.rounded, wrong)
    assert not result.clean.any()
    # rounding disarms nothing: what was misclassified before it still is
    assert not (result.unrounded & ~result.rounded).any()
    assert result.rates()["rounded"] == float(wrong.double().mean())
    if attack.needs_gradient:
        assert wrong.double().mean() >= 0.75
    again = made(attack)(FIXTURE.network, before, FIXTURE.labels, EPS if attack.bounded else None)
    assert torch.equal(again, result.images)


def test_a_result_says_what_it_is_in_a_line():
    result = FGSM().run(FIXTURE.network, FIXTURE.images, FIXTURE.labels, EPS)
    assert str(result).startswith(f"misclassified of {len(FIXTURE.images)} images: 0.0 % before the attack, ")
    assert repr(result) == f"AttackResult({result})"
    assert str(FGSM().run(FIXTURE.network, FIXTURE.images[:0], FIXTURE.labels[:0], EPS)) == "no images"


def test_is_the_same_alone_and_in_any_order(attack: type[Attack]) -> None:
    together = run(attack, FIXTURE.images, FIXTURE.labels, seed=3).images
    for i in (0, 5):
        alone = run(attack, FIXTURE.images[i : i + 1], FIXTURE.labels[i : i + 1], seed=3).images
        assert torch.equal(alone[0], together[i])
    order = torch.tensor([3, 1, 7, 0])
    assert torch.equal(run(attack, FIXTURE.images[order], FIXTURE.labels[order], seed=3).images, together[order])


def test_random_attacks_follow_their_seed(attack: type[Attack]) -> None:
    if not attack.random:
        assert torch.equal(run(attack, FIXTURE.images, None, seed=1).images, run(attack, FIXTURE.images, None).images)
        return
    torch.manual_seed(0)
    first = run(attack, FIXTURE.images, None, seed=1).images
    torch.manual_seed(1)
    assert torch.equal(run(attack, FIXTURE.images, None, seed=1).images, first)
    assert not torch.equal(run(attack, FIXTURE.images, None, seed=2).images, first)


def test_leaves_the_state_of_torch_alone(attack: type[Attack]) -> None:
    state = torch.get_rng_state()
    with torch.no_grad():
        result = run(attack, FIXTURE.images[:2], None)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert not result.images.requires_grad
    assert all(parameter.grad is None for parameter in FIXTURE.network.parameters())


def test_more_images_than_a_block_and_none() -> None:
    images = FIXTURE.images.repeat(BLOCK // 8 + 1, 1, 1, 1)
    seen: list[int] = []
    result = BIM().run(FIXTURE.network, images, None, 4, progress=seen.append)
    assert seen == [BLOCK, BLOCK + 8]
    assert torch.equal(result.images[:8], result.images[-8:])
    assert torch.equal(result.images[:8], BIM()(FIXTURE.network, FIXTURE.images, None, 4))
    empty = PGD().run(FIXTURE.network, FIXTURE.images[:0], FIXTURE.labels[:0], 8)
    assert empty.images.shape == (0, 1, 10, 10)
    assert empty.rounded.shape == (0,)


def test_classifier_always_sees_whole_batches() -> None:
    sizes = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return FIXTURE.network(x)

    for count in (1, 8, BATCH + 1):
        images = FIXTURE.images.repeat(5, 1, 1, 1)[:count]
        DeepFool()(Watched().eval(), images, None, 8)
    assert set(sizes) == {BATCH}
    x = FIXTURE.x
    torch.testing.assert_close(FixedBatch(FIXTURE.network, 3)(x), FIXTURE.network(x))


def test_rand_is_uniform_over_the_integers_of_the_ball() -> None:
    grey = torch.full((40, 1, 10, 10), 128, dtype=torch.uint8)
    grey[:, 0, 0] = torch.arange(40)[:, None]  # different images, different noise
    change = Rand()(FIXTURE.network, grey, None, 3).int()[:, 0, 1:] - 128
    counts = torch.stack([(change == level).sum() for level in range(-3, 4)]).double()
    assert counts.sum() == change.numel()
    expected = change.numel() / 7
    assert ((counts - expected) ** 2 / expected).sum() < 22.5  # chi-squared, 6 degrees of freedom, p = 0.001
    assert len(torch.unique(change.flatten(1), dim=0)) == 40


def test_generators_depend_on_image_and_seed_alone() -> None:
    def first(images: Tensor, seed: int) -> np.ndarray:
        return np.array([generator.random() for generator in image_generators(images.float() / 255, seed)])

    drawn = first(FIXTURE.images, 5)
    assert len(set(drawn)) == 8
    assert np.array_equal(first(FIXTURE.images.flip(0), 5), drawn[::-1])
    assert not np.intersect1d(first(FIXTURE.images, 6), drawn).size


@pytest.mark.parametrize(("eps", "steps"), [(0, 0), (1, 1), (2, 2), (8, 10), (16, 20), (25, 29)])
def test_bim_takes_the_papers_number_of_steps(eps: int, steps: int) -> None:
    assert bim_steps(eps) == steps
    calls = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(torch.is_grad_enabled())
            return FIXTURE.network(x)

    BIM()(Counted().eval(), FIXTURE.images, FIXTURE.labels, eps)
    assert sum(calls) == steps


def test_label_rules() -> None:
    network, images, labels, others = FIXTURE.network, FIXTURE.images, FIXTURE.labels, FIXTURE.targets
    by_prediction = FGSM()(network, images, None, 8)
    assert torch.equal(FGSM()(network, images, others, 8), by_prediction)  # FGSM knows no true label
    assert torch.equal(FGSM(label_rule="given")(network, images, labels, 8), by_prediction)
    assert not torch.equal(FGSM(label_rule="given")(network, images, others, 8), by_prediction)
    assert not torch.equal(BIM()(network, images, others, 8), BIM()(network, images, labels, 8))
    assert torch.equal(BIM(label_rule="predicted")(network, images, others, 8), BIM()(network, images, labels, 8))
    with pytest.raises(ValueError, match=r"label_rule.*given, predicted.*'true'"):
        FGSM(label_rule="true")


@pytest.mark.parametrize("attack", [DeepFool, CWL2, CWLinf, SaliencyMap], ids=lambda attack: attack.name)
def test_minimal_attacks_leave_misclassified_images_alone(attack: type[Attack]) -> None:
    result = run(attack, FIXTURE.images, FIXTURE.targets)  # labels that the network does not give
    assert result.clean.all()
    assert torch.equal(result.images, FIXTURE.images)


@pytest.mark.parametrize("attack", [DeepFool, CWL2, CWLinf], ids=lambda attack: attack.name)
def test_minimal_attacks_move_less_than_the_sign_of_the_gradient(attack: type[Attack]) -> None:
    options = {"steps": 100, "binary_search_steps": 5, "initial_const": 0.1} if attack is CWL2 else {}
    result = attack(**options).run(FIXTURE.network, FIXTURE.images, FIXTURE.labels, 255)
    assert result.rounded.all()
    smallest = []
    for eps in range(1, 60):
        wrong = FGSM().run(FIXTURE.network, FIXTURE.images, FIXTURE.labels, eps).rounded
        smallest.append(wrong)
    first = torch.stack(smallest).int().argmax(0) + 1  # the smallest eps at which FGSM succeeds
    change = (result.images.int() - FIXTURE.images.int()).abs()
    if attack is CWL2:
        assert (change.double().square().mean((1, 2, 3)).sqrt() <= first + 1).all()
    else:
        assert (change.amax((1, 2, 3)) <= first + 1).all()


class Threshold(nn.Module):
    """Two classes: the second when the images' mean lies above ``at``, in grey levels."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        excess = 255 * x.double().mean((1, 2, 3)) - self.at
        return torch.stack((-excess, excess), 1)


def test_rounding_that_disarms_is_reported_and_mended() -> None:
    """A change of 0.3 levels everywhere is adversarial, and rounds to none."""
    images = torch.full((3, 1, 4, 4), 100, dtype=torch.uint8)
    images[1], images[2] = 255, 90
    classifier = Threshold(100.2).eval()

    class Slightly(Attack):
        name, source, needs_gradient = "slightly", "this test", False

        def perturb(
            self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0
        ) -> Tensor:
            return (x + 0.3 / 255).clamp(max=1)

    result = Slightly().run(classifier, images, torch.zeros(3, dtype=torch.int64), 8)
    assert result.clean.tolist() == [False, True, False]
    assert result.unrounded.tolist() == [True, True, False]
    assert result.nearest.tolist() == [False, True, False]
    assert result.rounded.tolist() == [True, True, False]
    assert result.images[:, 0, 0, 0].tolist() == [101, 255, 90]
    text = str(result)
    assert "66.7 % after it, 33.3 % rounded to the nearest grid values, 66.7 % as returned" in text


def test_mending_stays_in_the_ball_and_tries_the_smallest_change_first() -> None:
    images = torch.full((2, 1, 2, 2), 100, dtype=torch.uint8)
    moved = images.float() / 255
    moved[0] += torch.tensor([[0.45, 0.45], [0.3, 0.0]]) / 255
    moved[1] += 5.3 / 255
    labels, none = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    grid = to_grid(images, moved, 5)
    assert grid[:, 0, 0, 0].tolist() == [100, 105]
    # half of the values one level up is enough for the first; the ball is in the way of the second
    mended, wrong = rearm(Threshold(100.4).eval(), images[:1], moved[:1], grid[:1], labels[:1], 5, ~none[:1], none[:1])
    assert mended.flatten().tolist() == [101, 101, 100, 100]
    assert wrong.tolist() == [True]
    mended, wrong = rearm(Threshold(105.1).eval(), images[1:], moved[1:], grid[1:], labels[1:], 5, ~none[1:], none[1:])
    assert mended.flatten().tolist() == [105] * 4
    assert wrong.tolist() == [False]
    # values too small to be stretched enough are rounded away from the given ones
    moved[0] = 100 / 255 + 0.02 / 255
    mended, wrong = rearm(Threshold(100.4).eval(), images[:1], moved[:1], grid[:1], labels[:1], 5, ~none[:1], none[:1])
    assert mended.flatten().tolist() == [101] * 4


class Tops(nn.Module):
    """Of images (N, 1, H, W) by their first value: class 2 above 101.4, class 1 above 100.5, or else class 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = 255.0 * x[:, 0, 0, 0]
        return torch.stack([0.0 * first, first - 100.5, 2.0 * first - 201.9], dim=1)


def test_mending_leads_to_the_target_that_rounding_undid() -> None:
    """A wrong class that was not wanted is no end of it."""
    images = torch.full((1, 1, 2, 2), 99, dtype=torch.uint8)
    moved = images.float() / 255
    moved[0, 0, 0, 0] = 101.45 / 255
    label, target = torch.tensor([0]), torch.tensor([2])
    assert Tops()(to_grid(images, moved, 5).float() / 255).argmax(1).tolist() == [1]
    found = settled(Tops().eval(), images, images.float() / 255, moved, label, label != 0, 5, targets=target)
    assert found.images.flatten().tolist() == [102, 99, 99, 99]
    assert found.rounded.tolist() == [True]
    assert settled(Tops().eval(), images, images.float() / 255, moved, label, label != 0, 5).images[0, 0, 0, 0] == 101


@pytest.mark.parametrize("attack", [FGSM, DeepFool, SaliencyMap], ids=lambda attack: attack.name)
def test_colour_images_in_either_memory_format(attack: type[Attack]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 5)).eval()
    images = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    eps = 30 if attack.bounded else None
    result = attack().run(network, images, None, eps)
    assert result.rounded.double().mean() >= 0.5
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(attack()(network, channels_last, None, eps), result.images)
    x = channels_last.float() / 255
    labels = network(x).argmax(1)
    by_floats = attack().perturb(network, x, labels, 1.0 if eps is None else eps / 255)
    assert torch.equal(network(by_floats).argmax(1) != labels, result.unrounded)


@pytest.mark.external
def test_autoattack() -> None:
    pytest.importorskip("pyautoattack", reason="autoattack needs pyautoattack")
    attack = AutoAttack()
    state = torch.get_rng_state()
    result = attack.run(FIXTURE.network, FIXTURE.images[:4], FIXTURE.labels[:4], 12, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert int((result.images.int() - FIXTURE.images[:4].int()).abs().max()) <= 12
    by_bim = BIM().run(FIXTURE.network, FIXTURE.images[:4], FIXTURE.labels[:4], 12)
    assert not (by_bim.rounded & ~result.rounded).any()
    assert torch.equal(attack(FIXTURE.network, FIXTURE.images[:4], FIXTURE.labels[:4], 12, seed=1), result.images)
    assert torch.equal(attack(FIXTURE.network, FIXTURE.images, FIXTURE.labels, 0), FIXTURE.images)


class Wanting(nn.Module):
    """The fixture's network, which notes whether its weights want a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = FIXTURE.network
        self.noted: list[bool] = []
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.noted.append(any(parameter.requires_grad for parameter in self.parameters()))
        return self.inner(x)


@pytest.mark.external
def test_autoattack_leaves_no_gradients_in_the_weights() -> None:
    """FAB goes backwards to all that wants one."""
    pytest.importorskip("pyautoattack", reason="autoattack needs pyautoattack")
    network = Wanting()
    AutoAttack().perturb(network, FIXTURE.x[:1], FIXTURE.labels[:1], 40 / 255)
    assert len(network.noted) > 10
    assert network.noted.count(True) == 1, "but for the trial of whether there is a gradient with respect to images"
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.external
def test_autoattack_for_random_defences_draws_their_noise_anew() -> None:
    pytest.importorskip("pyautoattack", reason="autoattack needs pyautoattack")
    noise = Noisy(sigma=0.02, runs=1)
    defended = Defended(FIXTURE.network, [noise])
    labels = defended(FIXTURE.x[:2]).argmax(1)
    found = []
    for version in ("rand", "standard"):
        noise.calls.clear()
        AutoAttack(version=version).perturb(defended, FIXTURE.x[:2], labels, 2 / 255, seed=1)
        drawn: dict[bytes, set[tuple[int, ...]]] = {}  # by images
        for asked, seeds, _ in noise.calls:
            drawn.setdefault(asked.numpy().tobytes(), set()).add(tuple(seeds))
        found.append(max(map(len, drawn.values())))
    assert found[0] >= 20
    assert found[1] == 1
    again = [AutoAttack(version="rand")(defended, FIXTURE.images[:2], labels, 2, seed=1) for _ in range(2)]
    assert torch.equal(*again)


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return FIXTURE.network(x.detach()).detach()


def test_a_classifier_without_gradient_is_refused_where_one_is_needed(attack: type[Attack]) -> None:
    eps = EPS if attack.bounded else None
    if not attack.needs_gradient:
        assert made(attack)(Detached().eval(), FIXTURE.images[:1], None, eps).shape == (1, 1, 10, 10)
        return
    with pytest.raises(NoGradient, match="no gradient"):
        attack()(Detached().eval(), FIXTURE.images[:1], None, eps)


def test_gradient_is_that_of_the_summed_cross_entropy() -> None:
    x = FIXTURE.x.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(FIXTURE.network(x), FIXTURE.labels, reduction="sum"), x)
    moved = FGSM()(FIXTURE.network, FIXTURE.images, FIXTURE.labels, 8)
    expected = (FIXTURE.images.int() + 8 * gradient.sign().int()).clamp(0, 255)
    assert torch.equal(moved.int(), expected)


def test_bad_input() -> None:
    network, images, labels = FIXTURE.network, FIXTURE.images, FIXTURE.labels
    with pytest.raises(ValueError, match=r"in \[0, 1\], got .* to 250; values in 0\.\.255 have to be uint8"):
        BIM()(network, images.float(), None, 8)
    with pytest.raises(TypeError, match=r"uint8.*int64"):
        BIM()(network, images.long(), None, 8)
    with pytest.raises(TypeError, match=r"uint8.*ndarray"):
        BIM()(network, images.numpy(), None, 8)
    with pytest.raises(ValueError, match=r"\(1, 10, 10\)"):
        BIM()(network, images[0], None, 8)
    with pytest.raises(ValueError, match=r"\(8,\).*\(3,\)"):
        BIM()(network, images, labels[:3], 8)
    with pytest.raises(TypeError, match=r"integer labels.*float32"):
        BIM()(network, images, labels.float(), 8)
    with pytest.raises(ValueError, match="256"):
        BIM()(network, images, labels, 256)
    with pytest.raises(TypeError, match=r"8\.0"):
        BIM()(network, images, labels, 8.0)
    with pytest.raises(ValueError, match="bim needs eps"):
        BIM()(network, images, labels)
    with pytest.raises(ValueError, match=r"saliency-map.*no eps.*8"):
        SaliencyMap()(network, images, labels, 8)
    with pytest.raises(ValueError, match="eval"):
        BIM()(nn.Sequential(nn.Flatten(), nn.Linear(100, 10)), images, labels, 8)
