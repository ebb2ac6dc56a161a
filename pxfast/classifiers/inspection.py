"""Whether any module is a classifier that attacks and defences can work with, and if not, what is wrong with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..base.checks import check_count, check_flag, check_instance
from ..base.records import shown
from ..tensors.ambient import in_plain_torch
from ..tensors.batches import FIXED_BATCH
from ..tensors.floating import in_type_of
from .contract import Labels, checked_logits, class_labels

LEAST = 2  # images of a trial
# parts of the logits' range that rounding may account for: between two calls, and between batches of other sizes, for
# which libraries pick other ways to sum; a network that computes in bf16 needs the latter
SAME_BATCH, OTHER_BATCH = 1e-3, 2e-2
MOST_LISTED = 3
CONTRACT = (
    "a classifier is an nn.Module in eval mode that takes floating images (N, C, H, W) in [0, 1], with all "
    "preprocessing inside, and gives logits (N, classes)"
)


@in_plain_torch
def check_classifier(
    classifier: nn.Module,
    images: Tensor,
    labels: Labels | None = None,
    *,
    classes: int | None = None,
    gradients: bool = True,
) -> Tensor:
    """The classifier's logits (N, classes), detached, of images that it is tried on; an error says what is wrong.

    classifier: as attacks and defences take it: in eval mode, floating images (N, C, H, W) in [0, 1], of the type of
    its weights, to logits (N, classes), on one device. images: uint8 (N, C, H, W) like those it is for, at least 2,
    better 32; they are moved to the classifier's device. labels: integers (N,), the true ones, with which images that
    should be scaled by 255 are noticed; None: unknown. classes: how many there should be; None: any number. gradients:
    whether the attacks will ask for them.

    TypeError or ValueError, each of which names what was expected and what came, for a module in training mode, weights
    on several devices or without values, a failing call, images expected as (N, H, W, C), outputs that are no tensor of
    shape (N, classes), probabilities, NaN, another number of classes, a module that changes its input, logits that
    differ from call to call or depend on other images of the batch, images expected in 0..255, and gradients that are
    not there, zero or not finite. Nothing of the module is changed.
    """
    check_flag("gradients", gradients)
    check_module(classifier)
    check_instance("images", images, Tensor)
    if images.dtype != torch.uint8 or images.dim() != 4 or len(images) < LEAST:
        raise ValueError(
            f"expected uint8 images (N, C, H, W), at least {LEAST}, got {images.dtype} {tuple(images.shape)}"
        )
    x = in_type_of(classifier, images[:FIXED_BATCH].to(device_of(classifier)).float() / 255.0)
    with torch.no_grad():
        logits = _called(classifier, x)
        _check_repeatable(classifier, x, logits)
    if classes is not None and logits.shape[1] != check_count("classes", classes, 2):
        raise ValueError(f"expected logits of {classes} classes from the classifier, got {logits.shape[1]}")
    if labels is not None:
        known = class_labels(labels, len(images), classes=logits.shape[1], device=logits.device)[: len(x)]
        _check_scale(classifier, x, logits, known)
    if gradients:
        _check_gradient(classifier, x)
    return logits


def check_module(classifier: nn.Module) -> None:
    """TypeError or ValueError unless a module in eval mode, whose weights are on one device."""
    if isinstance(classifier, type):
        raise TypeError(f"{CONTRACT}; got the class {classifier.__name__} itself: pass an instance of it")
    if not isinstance(classifier, nn.Module):
        raise TypeError(f"{CONTRACT}; got {type(classifier).__name__}")
    if classifier.training:
        raise ValueError("expected a classifier in eval mode, got one in training mode: call its eval() first")
    device_of(classifier)


def device_of(classifier: nn.Module) -> torch.device:
    """Where a module's weights and buffers are; the CPU for one without any. ValueError unless one place for all."""
    places: dict[torch.device, str] = {}
    for name, tensor in (*classifier.named_parameters(), *classifier.named_buffers()):
        places.setdefault(tensor.device, name)
    if len(places) > 1:
        found = ", ".join(f"{name} on {device}" for device, name in list(places.items())[:MOST_LISTED])
        raise ValueError(f"expected a classifier whose weights are all on one device, got {found}")
    device = next(iter(places), torch.device("cpu"))
    if device.type == "meta":
        raise ValueError("expected a classifier with weights, got one on the device 'meta', which has no values")
    return device


def _called(classifier: nn.Module, x: Tensor) -> Tensor:
    """Logits of one call, which leaves its images as they are."""
    given = x.clone()
    try:
        output = classifier(given)
    except Exception as error:  # whatever a module of a user's raises
        raise _failure(classifier, x, error) from error
    _check_form(output, len(x))
    logits = checked_logits(output, len(x))
    if not torch.equal(given, x):
        raise ValueError(
            "expected a classifier that leaves its images as they are, got one that changes them in place: "
            "write x = x - mean in place of x -= mean"
        )
    if is_probability(logits):
        raise ValueError(
            "expected logits from the classifier, got probabilities, which sum to 1 for each image: leave the softmax "
            "out, through which gradients vanish"
        )
    return logits.detach()


def _failure(classifier: nn.Module, x: Tensor, error: Exception) -> Exception:
    """What to say of a call that failed: that the images are expected in another order, or the module's own words."""
    kind = type(error).__name__
    what = f"{kind}: {' '.join(str(error).split())[:200]}" if str(error) else kind
    try:
        output: Any = classifier(x.permute(0, 2, 3, 1).contiguous())
    except Exception:
        output = None
    given = f"{str(x.dtype)[6:]} images of shape {tuple(x.shape)} on {x.device}"
    if isinstance(output, Tensor) and output.shape[:1] == x.shape[:1]:
        return ValueError(
            "expected a classifier of images (N, C, H, W), got one of images (N, H, W, C): permute them inside, by "
            f"x.permute(0, 2, 3, 1); with {given} it failed ({what})"
        )
    return ValueError(f"{CONTRACT}; this one failed with {given}, {what}")


def _check_form(output: object, count: int) -> None:
    """TypeError or ValueError for outputs that hold logits and are none; others are left to the contract."""
    expected = f"expected logits ({count}, classes) from the classifier, a single tensor"
    if isinstance(output, dict) or hasattr(output, "logits"):
        names = ", ".join(map(str, output)) if isinstance(output, dict) else "logits among others"
        raise TypeError(f"{expected}, got {type(output).__name__} of {names[:100]}: return the logits alone")
    if isinstance(output, (tuple, list)):
        parts = ", ".join(
            f"{type(each).__name__} {tuple(each.shape)}" if isinstance(each, Tensor) else shown(each) for each in output
        )
        raise TypeError(
            f"{expected}, got {type(output).__name__} of {parts[:100] or 'nothing'}: return the logits alone"
        )
    if not isinstance(output, Tensor):
        return
    if output.dtype == torch.int64:
        raise TypeError(
            f"{expected}, got {output.dtype} {tuple(output.shape)}: labels are not enough, leave argmax out"
        )
    if output.dim() > 2 and output.shape[0] == count and output[0].numel() == output.shape[1]:
        raise ValueError(f"{expected}, got {tuple(output.shape)}: flatten it, by flatten(1)")
    if output.shape in ((count, 1), (count,)):
        raise ValueError(f"{expected} of at least two classes, got {tuple(output.shape)}: give a logit for each class")


def is_probability(outputs: Tensor) -> bool:
    """Whether outputs (N, classes) are probabilities: none below 0, with a sum of 1 for each image."""
    values = outputs.detach().double()
    return bool((values >= 0).all()) and bool(((values.sum(1) - 1.0).abs() < 1e-2).all())


def difference(logits: Tensor, others: Tensor) -> float:
    """The largest difference of two results (N, classes), as a part of the first one's range; 0 is the best."""
    scale = float(logits.max() - logits.min())
    largest = float((logits - others).abs().max())
    return largest / scale if scale > 0.0 else largest


def _check_repeatable(classifier: nn.Module, x: Tensor, logits: Tensor) -> None:
    """ValueError where another call, or other images in the batch, give other logits than rounding accounts for."""
    modes = [name or type(module).__name__ for name, module in classifier.named_modules() if module.training]
    hint = ""
    if modes:
        listed = ", ".join(modes[:MOST_LISTED]) + (", ..." if len(modes) > MOST_LISTED else "")
        hint = f" (in training mode inside: {listed}; call eval())"
    if (far := difference(logits, _called(classifier, x))) > SAME_BATCH:
        raise ValueError(
            "expected a classifier that is not random, got logits that differ between two calls, by "
            f"{100 * far:.2g} % of their range{hint}; what is random belongs into a defence (pxfast.defences.protocol)"
        )
    alone = torch.cat([_called(classifier, image.repeat(LEAST, 1, 1, 1))[:1] for image in x[:LEAST].split(1)])
    if (far := difference(logits[:LEAST], alone)) > OTHER_BATCH:
        raise ValueError(
            "expected a classifier that judges each image by itself, got logits that depend on the other images of the "
            f"batch, by {100 * far:.2g} % of their range{hint}"
        )


@torch.no_grad()
def _check_scale(classifier: nn.Module, x: Tensor, logits: Tensor, labels: Tensor) -> None:
    """ValueError where most images are classified rightly in 0..255 alone."""
    right = int((logits.argmax(1) == labels).sum())
    try:
        scaled = int((classifier(x * 255.0).argmax(1) == labels).sum())
    except Exception:  # one that refuses such images is right
        return
    if scaled - right > len(x) // 2:
        raise ValueError(
            f"expected a classifier of images in [0, 1], got one of images in 0..255: of {len(x)} images it gets "
            f"{right} right in [0, 1], and {scaled} in 0..255; multiply by 255 inside"
        )


def _check_gradient(classifier: nn.Module, x: Tensor) -> None:
    """ValueError where the two largest logits' difference has no gradient with respect to the images, zero, or NaN.

    That difference has one however sure the classifier is; the cross-entropy's underflows.
    """
    expected = "expected a classifier whose logits have a gradient with respect to the images"
    hint = "no_grad, detach, NumPy, rounding or argmax inside cuts it off"
    with torch.enable_grad():
        given = x.detach().requires_grad_()
        try:
            best, second = classifier(given.clone()).topk(2, dim=1).values.unbind(1)
            (gradient,) = torch.autograd.grad((best - second).sum(), given, allow_unused=True)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise ValueError(
                    f"{expected}, got {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                ) from error
            gradient = None
    if gradient is None:
        raise ValueError(f"{expected}, got none: {hint}")
    flat = gradient.flatten(1)
    if wrong := int((~torch.isfinite(flat)).any(dim=1).sum()):
        raise ValueError(f"{expected}, got NaN or infinity for {wrong} of {len(x)} images")
    if (zero := int((flat == 0).all(dim=1).sum())) > len(x) // 2:
        raise ValueError(f"{expected}, got zero for {zero} of {len(x)} images: {hint}")
