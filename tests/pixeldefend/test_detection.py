"""Detection by p-value: the formula, its level, what is refused, and how well noise is told from real images."""

import gc
import json
import math
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import stats
from support.helpers import bundled_images, noisy, real_images, trained_model
from torch import Tensor

import pxfast
from pxfast.data.datasets import load_dataset
from pxfast.data.images import to_grid
from pxfast.pixelcnn import fingerprint
from pxfast.pixelcnn.files import save
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.pixelcnn.shipped import SHIPPED
from pxfast.pixeldefend import detection
from pxfast.pixeldefend.detection import Detector, _read, roc_auc_score, roc_curve


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))


@pytest.fixture
def fitted(tiny_model, images) -> Detector:
    return Detector(tiny_model).fit(images[:9])


def test_p_value_is_the_papers_formula(fitted, tiny_model, images):
    train, held_out = (pxfast.log_prob(part, model=tiny_model) for part in (images[:9], images[9:]))
    assert fitted.log_likelihoods.dtype == torch.float32
    torch.testing.assert_close(fitted.log_likelihoods, train.float())
    expected = [(1 + sum(t <= x for t in train.tolist())) / 10 for x in held_out.tolist()]
    assert len(set(expected)) > 1
    found = fitted.p_value(images[9:])
    assert found.dtype == torch.float64
    assert found.tolist() == expected


def test_ties_count(tiny_model, images):
    image = images[:1]
    detector = Detector(tiny_model).fit(image)
    assert detector.p_value(image).tolist() == [1.0], "p(X_1) <= p(X) of the image itself"
    same = detector.log_likelihoods
    lower, higher = same - 1, same + 1
    for known, p_value in (((same, same, same), 1.0), ((lower, same, higher), 3 / 4), ((higher,), 1 / 2)):
        detector.log_likelihoods = torch.cat(known)
        assert detector.p_value(image).tolist() == [p_value]


def test_library_rank_and_range(fitted, images):
    whole = fitted.p_value(images)
    array = fitted.p_value(images.numpy())
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, whole.numpy())
    assert fitted.p_value(images[3]).shape == ()
    assert fitted.p_value(images[:0]).shape == (0,)
    assert ((whole >= 0.1) & (whole <= 1)).all()
    flagged = fitted.is_adversarial(images, alpha=0.5)
    assert flagged.dtype == torch.bool
    assert torch.equal(flagged, whole <= 0.5)


def test_score_is_bits_per_dim_and_orders_against_the_p_value(fitted, tiny_model, images):
    score = fitted.bits_per_dim(images)
    assert torch.equal(score, pxfast.bits_per_dim(images, model=tiny_model))
    assert torch.equal(Detector(tiny_model).bits_per_dim(images), score), "needs no fit"
    assert (fitted.p_value(images)[score.argsort()].diff() <= 0).all(), "the larger, the more suspicious"


def test_partial_fit_adds_and_fit_forgets(fitted, tiny_model, images):
    in_parts = Detector(tiny_model).partial_fit(images[:4]).partial_fit(images[4:9])
    torch.testing.assert_close(in_parts.log_likelihoods, fitted.log_likelihoods)
    in_parts.fit(images[:2])
    assert len(in_parts.log_likelihoods) == 2


def test_progress(tiny_model, images, capsys):
    Detector(tiny_model).fit(images, progress=True)
    assert "12/12" in capsys.readouterr().err
    told: list[int] = []
    detector = Detector(tiny_model).fit(images, batch_size=8, progress=told.append)
    detector.judge(images, 0.2, batch_size=8, progress=told.append)
    detector.bits_per_dim(images, batch_size=8, progress=told.append)
    assert told == [8, 12] * 3


def test_images_stay_on_their_device(tiny_model, images, monkeypatch):
    """With a stand-in for a GPU: what the door for images was asked."""
    asked = []

    def door(given, **options):
        asked.append(options["keep_device"])
        return to_grid(given, **options)

    monkeypatch.setattr(detection, "to_grid", door)
    detector = Detector(tiny_model).fit(images)
    detector.p_value(images)
    detector.judge(images, 0.2)
    assert asked == [True, True, True]


@pytest.mark.gpu
def test_images_on_a_gpu_are_judged_there(tiny_model, images, fitted):
    detector = Detector(tiny_model).fit(images[:9].cuda())
    found = detector.p_value(images.cuda())
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), fitted.p_value(images), rtol=0, atol=0.11)


def test_a_model_is_hashed_again_only_when_it_has_changed(make_model, images, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        fingerprint, "model_fingerprint", lambda model: hashed.append(model) or model_fingerprint(model)
    )
    model = make_model()
    detector = Detector(model).fit(images)
    assert len(hashed) == 1
    detector.p_value(images)
    detector.judge(images, 0.2)
    assert len(hashed) == 1
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match="the model's weights have changed since"):
        detector.p_value(images)
    assert len(hashed) == 2
    kept = weakref.ref(model)
    del model, detector
    hashed.clear()
    gc.collect()
    assert kept() is None


def test_shipped_log_likelihoods_are_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(detection, "_read", lambda path: read.append(path) or _read(path))
    detection._read_once.cache_clear()
    detector = Detector("fashion-mnist")
    given = pxfast.sample(1, model="fashion-mnist", seed=0)
    assert torch.equal(detector.p_value(given), detector.p_value(given))
    assert len(read) == len(set(read)) >= 1


def test_refusals(fitted, tiny_model, images):
    with pytest.raises(ValueError, match="at least one training image, got none"):
        Detector(tiny_model).fit(images[:0])
    with pytest.raises(ValueError, match=r"\(C, H, W\) = \(1, 8, 8\), got \(1, 8, 4\)"):
        fitted.fit(images[..., :4])
    assert len(fitted.log_likelihoods) == 9, "a refused fit changes nothing"
    with pytest.raises(ValueError, match=r"got \(1, 8, 4\)"):
        fitted.p_value(images[..., :4])
    with pytest.raises(TypeError, match=r"got a tensor of torch.int32"):
        fitted.p_value(images.int())
    with pytest.raises(TypeError, match="model must be a PixelCNN"):
        Detector(5)
    for alpha in (0.0, 1.0, -1, math.nan):
        with pytest.raises(ValueError, match=r"alpha must be a number in \(0, 1\)"):
            fitted.is_adversarial(images, alpha)
    with pytest.raises(ValueError, match=r"at most alpha = 0.05 with 9 training images"):
        fitted.is_adversarial(images)


@pytest.mark.parametrize("tail", ["lower", "both"])
def test_every_alpha_that_a_p_value_can_meet_is_taken(make_model, images, tail):
    """1 / (N + 1) times N + 1 may be rounded to less than 1."""
    assert (1.0 / 49) * 49 < 1.0
    detector = Detector(make_model(), tail=tail).fit(images[:1].expand(48, -1, -1, -1))
    least = (1.0 if tail == "lower" else 2.0) / 49
    assert detector.is_adversarial(images, least).shape == (len(images),)
    with pytest.raises(ValueError, match="no p-value is at most"):
        detector.is_adversarial(images, 0.999 * least)


def test_a_model_that_gives_no_number_is_refused(make_model, images):
    model = make_model()
    with torch.no_grad():
        model.output.b.fill_(math.nan)
    with pytest.raises(ValueError, match="not a number"):
        Detector(model).fit(images)


def test_unfitted_detector_asks_for_fit(tiny_model, images, tmp_path):
    detector = Detector(tiny_model)
    with pytest.raises(RuntimeError, match=r"call fit\(train_images\) first"):
        detector.p_value(images)
    with pytest.raises(RuntimeError, match=r"call fit\(train_images\) first"):
        detector.save(tmp_path / "detector.safetensors")
    assert "not fitted" in repr(detector)


def test_save_and_load(fitted, tiny_model, images, tmp_path):
    path = tmp_path / "detector.safetensors"
    fitted.save(path)
    loaded = Detector.load(path, tiny_model)
    assert torch.equal(loaded.log_likelihoods, fitted.log_likelihoods)
    assert torch.equal(loaded.p_value(images), fitted.p_value(images))
    assert "9 training images" in repr(loaded)
    assert Detector.load(path, tiny_model, clip=True).p_value(images.float() / 250.0).shape == (12,)
    with pytest.raises(FileExistsError, match="exists already"):
        fitted.save(path)
    fitted.partial_fit(images[9:]).save(path, force=True)
    assert len(Detector.load(path, tiny_model).log_likelihoods) == 12
    assert [file.name for file in tmp_path.iterdir()] == ["detector.safetensors"]


def test_another_models_log_likelihoods_are_refused(fitted, tiny_model, make_model, images, tmp_path):
    path = tmp_path / "detector.safetensors"
    fitted.save(path)
    with pytest.raises(ValueError, match=r"detector.safetensors holds the log-likelihoods of another model"):
        Detector.load(path, make_model(seed=1))
    with pytest.raises(ValueError, match=r"no shipped model takes images of shape \(1, 8, 8\)"):
        Detector.load(path)
    model = make_model(seed=2)
    changing = Detector(model).fit(images)
    with torch.no_grad():
        model.output.b.add_(0.01)  # as a training that goes on would
    for use in (changing.p_value, changing.is_adversarial, changing.partial_fit):
        with pytest.raises(ValueError, match="weights have changed"):
            use(images)
    changing.save(path, force=True)
    with pytest.raises(ValueError, match=r"detector.safetensors holds the log-likelihoods of another model"):
        Detector.load(path, model)
    changing.fit(images).p_value(images)


def test_bad_files_are_named(fitted, tiny_model, tmp_path):
    path = tmp_path / "detector.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        Detector.load(path, tiny_model)
    fitted.save(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"detector\.safetensors is truncated"):
        Detector.load(path, tiny_model)
    save(tiny_model, path, force=True)
    with pytest.raises(ValueError, match="another kind: expected 'pxfast-detector'"):
        Detector.load(path, tiny_model)


@pytest.mark.parametrize("shape", [[1, 8], [1, 8, "8"], [1, 8, True], 5, "188"])
def test_a_file_of_no_image_shape_is_named(fitted, tiny_model, tmp_path, shape):
    path = tmp_path / "detector.safetensors"
    fitted.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata={**metadata, "image_shape": json.dumps(shape)})
    with pytest.raises(
        ValueError, match=r"detector\.safetensors: image_shape in its metadata must be \(C, H, W\), got"
    ):
        Detector.load(path, tiny_model)


@pytest.mark.parametrize(
    "values", [torch.zeros(0), torch.zeros(3, 1), torch.zeros(3).double(), torch.tensor([0.0, math.nan])]
)
def test_a_file_of_no_log_likelihoods_is_named(fitted, tiny_model, tmp_path, values):
    path = tmp_path / "detector.safetensors"
    fitted.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"log_likelihoods": values}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"detector\.safetensors: expected log-likelihoods \(N,\) float32, N > 0"):
        Detector.load(path, tiny_model)


def test_shipped_log_likelihoods_are_used_for_their_own_weights_only(tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "shipped_log_likelihoods_path", lambda name: tmp_path / f"{name}.safetensors")
    images = bundled_images(1)[:8]
    with pytest.raises(RuntimeError, match=r"shipped for the model's weights \(only for: none\)"):
        Detector().p_value(images[:1])
    fitted = Detector().fit(images[:6])
    fitted.save(tmp_path / "fashion-mnist.safetensors")
    for model in (None, "fashion-mnist", pxfast.load("fashion-mnist")):
        assert torch.equal(Detector(model).p_value(images[6:]), fitted.p_value(images[6:]))
    other = pxfast.load("fashion-mnist")
    with torch.no_grad():
        other.output.b.add_(0.01)
    with pytest.raises(RuntimeError, match=r"\(only for: fashion-mnist\): call fit"):
        Detector(other).p_value(images[:1])


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_belongs_to_the_shipped_model(name):
    path = detection.shipped_log_likelihoods_path(name)
    if not path.is_file():
        pytest.skip(f"no {path.name} in this tree: bench/scripts/make_detection_assets.py makes it")
    assert len(Detector.load(path, name).log_likelihoods) >= 1000


def test_p_values_of_held_out_images_are_uniform():
    """1600 real crops, split at random: 1280 for fitting, 320 held out, and these with noise."""
    model = trained_model((8, 8), 1, 8, 1)
    crops = real_images(1, (8, 8), 1600)[torch.randperm(1600, generator=torch.Generator().manual_seed(8))]
    detector = Detector(model).fit(crops[:1280])
    held_out = detector.p_value(crops[1280:])
    assert stats.kstest(held_out, "uniform").pvalue > 0.01
    assert abs(float(detector.is_adversarial(crops[1280:], 0.1).double().mean()) - 0.1) < 0.05
    # the test can fail
    assert stats.kstest(detector.p_value(noisy(crops[1280:], 12)), "uniform").pvalue < 1e-6


@pytest.mark.whole  # in the inner loop: uniform p-values of held-out images
def test_shipped_model_tells_noise_from_held_out_images(data_root: Path):
    """Test images alone, so that those fitted and those held out are exchangeable; uniform noise of up to ±8."""
    images, _ = load_dataset("fashion-mnist", data_root, train=False)
    detector = Detector("fashion-mnist").fit(images[:48])
    clean, noise = images[48:64], noisy(images[48:64], 8)
    p_values = detector.p_value(clean)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert (p_values <= 0.05).double().mean() < 0.15
    assert detector.is_adversarial(noise).double().mean() > 0.3
    assert roc_auc_score(detector.bits_per_dim(clean), detector.bits_per_dim(noise)) > 0.9


def test_roc_by_hand():
    clean, suspicious = torch.tensor([1.0, 2.0, 3.0]), np.array([2.5, 4.0])
    assert roc_auc_score(clean, suspicious) == pytest.approx(5 / 6)  # of the six pairs one is the wrong way round
    assert roc_auc_score(clean, clean.numpy()) == 0.5, "ties count half"
    false_positives, true_positives, thresholds = roc_curve(clean, suspicious)
    for threshold, false_rate, true_rate in zip(thresholds, false_positives, true_positives, strict=True):
        assert float((clean >= threshold).double().mean()) == pytest.approx(false_rate)
        assert (suspicious >= threshold).mean() == pytest.approx(true_rate)


def test_roc_refusals(monkeypatch):
    for bad in (torch.zeros(0), torch.zeros(2, 2), torch.tensor([math.nan]), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match=r"expected scores \(N,\) and \(M,\)"):
            roc_auc_score(torch.zeros(3), bad)
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ImportError, match=r"sklearn.metrics is not installed: pip install 'pxfast\[evaluate\]'"):
        roc_curve(torch.zeros(3), torch.ones(3))
