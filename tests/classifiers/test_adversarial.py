"""Adversarial examples of a training: their eps, iterations and bounds."""

import pytest
import torch
import torch.nn.functional as F
from support.helpers import bundled_images

from pxfast.classifiers import Classifier
from pxfast.classifiers.adversarial import attacked, bim_examples, bim_iterations, draw_eps, fgsm_examples


def test_eps_is_a_truncated_half_normal() -> None:
    """Moments of |N(0, delta)| given that it is at most 2 delta, by numerical integration of its density."""
    delta, count = 8.0, 200_000
    eps = draw_eps(count, delta, torch.Generator().manual_seed(0)).double()
    assert float(eps.min()) >= 0.0
    assert float(eps.max()) <= 2 * delta
    z = torch.linspace(0, 2, 20_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    density /= torch.trapezoid(density, z)
    for power in (1, 2, 3):
        expected = float(torch.trapezoid(density * z**power, z))
        assert float(((eps / delta) ** power).mean()) == pytest.approx(expected, rel=0.01)
    for quantile in (0.1, 0.5, 0.9):
        value = float(eps.quantile(quantile)) / delta
        below = z <= value
        assert float(torch.trapezoid(density[below], z[below])) == pytest.approx(quantile, abs=0.01)


def test_iterations_of_bim() -> None:
    eps = torch.tensor([0.0, 0.7, 0.8, 2.0, 8.0, 15.9, 16.0, 25.0, 50.0])
    assert bim_iterations(eps).tolist() == [0, 0, 1, 2, 10, 19, 20, 29, 54]


@pytest.mark.parametrize("attack", [fgsm_examples, bim_examples])
def test_adversarial_examples_stay_in_their_eps_and_raise_the_loss(attack, model: Classifier) -> None:
    x = bundled_images(1)[:16].float() / 255
    eps = torch.linspace(0.0, 16.0, 16)
    with attacked(model):
        moved = attack(model, x, eps)
    assert moved.min() >= 0.0
    assert moved.max() <= 1.0
    farthest = (moved - x).abs().amax((1, 2, 3)) * 255
    assert (farthest <= eps + 1e-3).all()
    # BIM goes so many steps of one grey level; FGSM makes all of eps at once
    reach = torch.minimum(eps, bim_iterations(eps).float()) if attack is bim_examples else eps
    torch.testing.assert_close(farthest, reach, atol=1e-3, rtol=0)
    predicted = model(x).argmax(1)  # the attack's labels are the model's own
    before = F.cross_entropy(model(x), predicted, reduction="none")
    after = F.cross_entropy(model(moved), predicted, reduction="none")
    assert (after[2:] > before[2:]).all()


def test_the_label_does_not_leak(model: Classifier) -> None:
    """FGSM is a step against the predicted label, whatever the true one: that of a literal computation."""
    x = bundled_images(1)[:4].float() / 255
    y = x.clone().requires_grad_()
    loss = -model(y).log_softmax(1).amax(1).sum()
    (gradient,) = torch.autograd.grad(loss, y)
    expected = (x + 4.0 / 255 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm_examples(model, x, torch.full((4,), 4.0)), expected)


def test_bim_agrees_with_a_loop_over_single_images(model: Classifier) -> None:
    x = bundled_images(1)[:4].float() / 255
    eps = torch.tensor([0.5, 2.0, 3.7, 6.0])
    together = bim_examples(model, x, eps)
    for n in range(4):
        image, label = x[n : n + 1], model(x[n : n + 1]).argmax(1)
        for _ in range(int(min(eps[n] + 4, 1.25 * eps[n]))):
            image = image.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(image), label), image)
            image = (image.detach() + gradient.sign() / 255).clamp(x[n] - eps[n] / 255, x[n] + eps[n] / 255).clamp(0, 1)
        # a sign may hang on rounding, which depends on the size of the batch
        assert float(((image - together[n]).abs() < 1e-4).double().mean()) > 0.98
