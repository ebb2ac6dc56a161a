"""The figures of densities: measured on real images, written whole, and never replaced unasked."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.helpers import real_images
from typer.testing import CliRunner

import pxfast
from pxfast.attacks import FGSM
from pxfast.classifiers import ResNetConfig, build
from pxfast.cli.main import app
from pxfast.data.datasets import DATASETS, first_images
from pxfast.data.image_files import write_png
from pxfast.evaluation.figures import DensityMeasurements, density_figures, measure_density, pictures
from pxfast.pixelcnn.files import save
from pxfast.pixelcnn.shipped import SHIPPED

NAMES = ("samples", "bits-per-dim", "p-values", "roc", "lbfgs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of 60 crops of real images, every tenth of which is a test image."""
    path = tmp_path_factory.mktemp("crops")
    for i, image in enumerate(real_images(3, (8, 8), 60)):
        write_png(image, path / f"{i:02}.png")
    return path


@pytest.fixture(scope="module")
def small(folder, tiny_colour_model) -> DensityMeasurements:
    return measure_density(
        str(folder), model=tiny_colour_model, images=4, train_images=20, shown=5, lbfgs_images=1, lbfgs_starts=2
    )


def test_measurements_are_the_libraries_own(small, folder, tiny_colour_model):
    model = tiny_colour_model
    crops = real_images(3, (8, 8), 60)
    clean, train = (
        first_images(folder, part, count) for part, count in ((crops[::10], 4), (crops[torch.arange(60) % 10 > 0], 20))
    )
    assert torch.equal(small.real, first_images(folder, crops[::10], 5))  # from all over it
    assert torch.equal(small.samples, pxfast.sample(5, model=model))
    np.testing.assert_allclose(np.sort(small.train_bits), np.sort(pxfast.bits_per_dim(train, model=model)), rtol=1e-5)
    first, noisy = small.series
    assert (first.name, noisy.name) == ("clean", "rand")
    purified = pxfast.purify(clean, 16, model=model)
    np.testing.assert_allclose(first.bits, pxfast.bits_per_dim(clean, model=model), rtol=1e-5)
    np.testing.assert_allclose(first.purified_bits, pxfast.bits_per_dim(purified, model=model), rtol=1e-5)
    detector = pxfast.Detector(model).fit(train)
    np.testing.assert_array_equal(first.p_values, detector.p_value(clean))
    np.testing.assert_array_equal(first.purified_p_values, detector.p_value(purified))
    assert not np.array_equal(noisy.bits, first.bits)
    assert small.settings["attack eps"] == 8
    assert {name: bits.shape for name, bits in small.baseline.items()} == {
        "clean": (1,),
        "rand": (1,),
        "L-BFGS-B": (1, 2),
        "greedy decoding": (1,),
    }
    np.testing.assert_array_equal(small.baseline["greedy decoding"], noisy.purified_bits[:1])


def test_pictures_are_written_whole_and_never_replaced(small, folder, tiny_colour_model, tmp_path, monkeypatch):
    monkeypatch.setattr("pxfast.evaluation.figures.density.measure_density", lambda *arguments, **settings: small)
    monkeypatch.setitem(pictures.STYLE, "savefig.dpi", 40)
    out = tmp_path / "new" / "figures"
    written = density_figures(str(folder), None, out)
    expected = {f"density-{folder.name}-{name}{suffix}" for name in NAMES for suffix in (".png", ".svg")}
    assert {path.name for path in out.iterdir()} == expected | {f"density-{folder.name}.json"}
    assert sorted(written) == sorted(out.iterdir())
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB")).astype(int)
            assert min(pixels.shape[:2]) > 75
            assert pixels.std() > 5, "the picture is blank"
            if "samples" not in path.name:  # all is told by grey, line style and hatching
                assert (pixels.max(axis=2) - pixels.min(axis=2)).max() == 0
        if path.suffix == ".svg":
            assert path.read_text().rstrip().endswith("</svg>")
    numbers = json.loads((out / f"density-{folder.name}.json").read_text())
    assert numbers["images"] == 4
    assert numbers["series"][1]["mean bits/dim"] == pytest.approx(small.series[1].bits.mean())
    before = {path: path.read_bytes() for path in written}
    with pytest.raises(FileExistsError, match="exists already"):
        density_figures(str(folder), None, out)
    drawn = {name: pictures.PICTURES[name] for name in ("samples", "roc")}
    monkeypatch.setattr(pictures, "PICTURES", drawn)  # drawing all of them again costs a second
    again = density_figures(str(folder), None, tmp_path / "again")
    assert len(again) == 5
    assert {path.name: path.read_bytes() for path in again}.items() <= {
        path.name: content for path, content in before.items()
    }.items(), "the same measurements give the same files"
    (out / f"density-{folder.name}.json").write_text("mine")
    density_figures(str(folder), None, out, force=True)
    assert {path: path.read_bytes() for path in written} == before
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is not a folder"):
        density_figures(str(folder), None, tmp_path / "file")


def test_what_was_not_measured_is_not_drawn(small):
    alone = dataclasses.replace(small, baseline={}, series=small.series[:1])
    assert pictures.draw_baseline(alone) is None
    assert [axes.get_title(loc="left") or axes.get_title() for axes in pictures.draw_bits_per_dim(alone).axes] == [
        "clean"
    ]


def test_bad_settings_are_named(folder, tiny_colour_model):
    with pytest.raises(ValueError, match="images must be an integer of at least 1, got 0"):
        measure_density(str(folder), model=tiny_colour_model, images=0)
    with pytest.raises(ValueError, match="'fgsm' needs a classifier"):
        measure_density(str(folder), model=tiny_colour_model, images=1, train_images=1, shown=1, attacks=["fgsm"])
    with pytest.raises(ValueError, match="unknown attack 'nonsense'"):
        measure_density(str(folder), model=tiny_colour_model, images=1, train_images=1, shown=1, attacks=["nonsense"])


def test_images_without_labels_are_attacked_by_the_classifiers_own(folder, tiny_colour_model, tmp_path):
    """And labels of other classes than the classifier's are refused, before any work."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = build(ResNetConfig((8, 8), 3, (4, 6, 8), units=1, classes=5)).eval()
    given = {"model": tiny_colour_model, "images": 2, "train_images": 2, "shown": 1, "lbfgs_images": 0}
    found = measure_density(str(folder), classifier=classifier, attacks=["fgsm"], **given)
    clean = first_images(folder, real_images(3, (8, 8), 60)[::10], 2)
    bits = pxfast.bits_per_dim(FGSM()(classifier, clean, None, 8), model=tiny_colour_model)
    np.testing.assert_allclose(found.series[1].bits, bits, rtol=1e-5)
    for i, path in enumerate(sorted(folder.iterdir())[:20]):
        (tmp_path / "two" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "two" / str(i % 2))
    with pytest.raises(ValueError, match=r"cifar10 is a classifier of images of shape .* not \(3, 8, 8\)"):
        measure_density(str(folder), classifier="cifar10", attacks=["fgsm"], **given)
    with pytest.raises(ValueError, match="two has 2 classes, but the classifier has 5"):
        measure_density(str(tmp_path / "two"), classifier=classifier, attacks=["fgsm"], **given)


def test_a_shipped_model(few_root):
    purification_undoes_noise("fashion-mnist", few_root)


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_models(name, data_root):
    purification_undoes_noise(name, data_root)


def purification_undoes_noise(name, root):
    measured = measure_density(name, root, images=2, train_images=2, shown=1, attacks=["rand"], lbfgs_images=0)
    clean, noisy = measured.series
    # noise is what the model finds unlikely, and purification what brings it back
    assert (noisy.bits > clean.bits + 0.5).all()
    assert (noisy.purified_bits < noisy.bits - 0.5).all()
    assert measured.samples.shape == measured.real.shape == (1, *DATASETS[name])
    assert measured.baseline == {}
    assert all(0 < p <= 1 for each in measured.series for p in each.p_values)
    assert np.median(measured.train_bits) < 5.0


@pytest.mark.whole  # in the inner loop: test_before_work.py
def test_command(tmp_path, folder, tiny_colour_model, monkeypatch):
    monkeypatch.setitem(pictures.STYLE, "savefig.dpi", 40)
    save(tiny_colour_model, tmp_path / "model.safetensors")
    arguments = ["figures", "density", str(folder), "--out", str(tmp_path / "out"), "--images", "2"]
    arguments += ["--train-images", "3", "--lbfgs-images", "0", "--model", str(tmp_path / "model.safetensors")]
    done = CliRunner().invoke(app, [*arguments, "--json", "--device", "cpu", "--attacks", "rand"])
    assert done.exit_code == 0, done.output
    files = json.loads(done.stdout)["files"]
    for name in NAMES[:-1]:
        assert str(tmp_path / "out" / f"density-{folder.name}-{name}.svg") in files
    assert "3/3 steps" in done.stderr
    assert isinstance(CliRunner().invoke(app, arguments).exception, FileExistsError)
