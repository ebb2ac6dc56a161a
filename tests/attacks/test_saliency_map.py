"""The saliency map attack: the pair it takes is the best of all, and it only turns values white, or black."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.attack_network import attack_fixture
from torch import Tensor

from pxfast.attacks import SaliencyMap, saliency_map
from pxfast.attacks.saliency_map import salient_pairs

FIXTURE = attack_fixture()


def best_pair(towards: Tensor, others: Tensor, free: Tensor, sign: int) -> float:
    """The best score of all pairs, one after the other; 0 where there is none."""
    best = 0.0
    for p, q in itertools.combinations(free.nonzero().flatten().tolist(), 2):
        alpha, beta = sign * float(towards[p] + towards[q]), sign * float(others[p] + others[q])
        if alpha > 0 > beta:
            best = max(best, -alpha * beta)
    return best


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 14),
    levels=st.sampled_from([1, 2, 5, 1000]),
    slope=st.sampled_from([-1.0, 0.0, 1.0]),
    increase=st.booleans(),
)
def test_salient_pairs_are_the_best_of_all_pairs(
    seed: int, size: int, levels: int, slope: float, increase: bool
) -> None:
    """Small integers, so that sums are exact; few levels make ties, slopes make values of which none surpasses any."""
    generator = torch.Generator().manual_seed(seed)
    towards, others = torch.randint(-levels, levels + 1, (2, 5, size), generator=generator).float()
    others = (others + slope * levels * towards).round()
    free = torch.rand(5, size, generator=generator) > 0.2
    pairs, found = salient_pairs(towards, others, free, increase=increase)
    sign = 1 if increase else -1
    for i in range(5):
        best = best_pair(towards[i], others[i], free[i], sign)
        assert bool(found[i]) == (best > 0.0)
        if found[i]:
            p, q = pairs[i].tolist()
            assert p < q
            assert free[i, [p, q]].all()
            assert -float(towards[i, p] + towards[i, q]) * float(others[i, p] + others[i, q]) == best
        alone = salient_pairs(towards[i : i + 1], others[i : i + 1], free[i : i + 1], increase=increase)
        assert torch.equal(alone[1], found[i : i + 1])
        assert torch.equal(alone[0][alone[1]], pairs[i : i + 1][alone[1]])


def test_salient_pairs_of_an_image_whose_values_all_contend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what helps the target helps the others as much, no value surpasses another; also in half precision."""
    monkeypatch.setattr(saliency_map, "MOST_PAIRS", 1)
    towards = torch.linspace(-4e-4, 5e-4, 64).half()[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    towards = torch.stack((towards, towards.flip(0)))
    others = towards - 3e-4
    free = torch.ones_like(towards, dtype=torch.bool)
    pairs, found = salient_pairs(towards, others, free, increase=True)
    assert found.all()
    for i in range(2):
        p, q = pairs[i].tolist()
        score = -float(towards[i, p].float() + towards[i, q]) * float(others[i, p].float() + others[i, q])
        assert score == pytest.approx(best_pair(towards[i].float(), others[i].float(), free[i], 1), rel=1e-6)


def test_saliency_map_only_turns_values_white() -> None:
    result = SaliencyMap().run(FIXTURE.network, FIXTURE.images, FIXTURE.labels)
    changed = result.images != FIXTURE.images
    assert (result.images[changed] == 255).all()
    assert (changed.sum((1, 2, 3)) % 2 == 0).all()
    black = SaliencyMap(theta=-1.0)(FIXTURE.network, FIXTURE.images, FIXTURE.labels)
    assert (black[black != FIXTURE.images] == 0).all()
    with pytest.raises(ValueError, match=r"theta.*1\.5"):
        SaliencyMap(theta=1.5)
