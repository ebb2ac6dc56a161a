"""`pxfast.Purifier` and `OnColumn` in data pipelines; Ray Data's are in test_ray.py."""

import functools
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from support.helpers import SOURCE, bundled_images, real_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import pxfast
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.data.image_decoding import array_pillow, pillow_array
from pxfast.defences import FeatureSqueezing, OnColumn


class Pictures(Dataset):
    """Bundled images as arrays (H, W), to be transformed."""

    def __init__(self, count: int) -> None:
        self.images, self.transform = bundled_images(1)[:count, 0].numpy(), None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]) if self.transform else self.images[index]


def python_blocks(heading: str) -> list[str]:
    """The Python code under a heading of the document."""
    text = (SOURCE / "docs" / "pipelines.md").read_text(encoding="utf-8")
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_data_loaders_of_the_document():
    images = bundled_images(1)[:3]
    expected = pxfast.purify(images, 16)
    collated, transformed = python_blocks("torch DataLoader")
    names = {"dataset": TensorDataset(images, torch.arange(3))}
    exec(collated, names)
    ((found, labels),) = names["loader"]
    assert torch.equal(found, expected)
    assert labels.tolist() == list(range(3))
    names["dataset"] = Pictures(3)
    names["dataset"].images = [Image.fromarray(image) for image in names["dataset"].images]
    exec(transformed, names)
    assert torch.equal(torch.stack([names["dataset"][i] for i in range(3)]), expected)


def purify_samples(purifier: OnColumn, samples: list):
    return purifier(default_collate(samples))


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one processor
def test_a_data_loader_with_workers_gives_the_same(tiny_colour_model):
    images = real_images(3, (8, 8), 12)
    purifier = OnColumn(pxfast.Purifier(16, model=tiny_colour_model))
    samples = [{"image": image, "label": label} for label, image in enumerate(images)]
    expected = pxfast.purify(images, 16, model=tiny_colour_model)
    for workers in (0, 2):
        loader = DataLoader(
            samples, batch_size=4, num_workers=workers, collate_fn=functools.partial(purify_samples, purifier)
        )
        batches = list(loader)
        assert torch.equal(torch.cat([batch["image"] for batch in batches]), expected)
        assert torch.cat([batch["label"] for batch in batches]).tolist() == list(range(12))


def test_a_mapping_keeps_all_but_the_images(tiny_model):
    images = real_images(1, (8, 8), 3).numpy()
    images.flags.writeable = False  # as Ray Data's batches are
    batch = OrderedDict(data=images, label=np.arange(3), name="a name")
    before = images.copy()
    found = OnColumn(pxfast.Purifier(16, model=tiny_model), "data")(batch)
    np.testing.assert_array_equal(found["data"], pxfast.purify(before, 16, model=tiny_model))
    assert found["label"] is batch["label"]
    assert list(found) == ["data", "label", "name"]
    assert batch["data"] is images
    np.testing.assert_array_equal(images, before)


def test_what_has_no_such_column_is_refused(tiny_model):
    on_column = OnColumn(pxfast.Purifier(16, model=tiny_model))
    with pytest.raises(ValueError, match="there is no column 'image' in a mapping of 'data', 'label'"):
        on_column({"data": real_images(1, (8, 8), 1), "label": 3})
    with pytest.raises(TypeError, match="a mapping that has the images in 'image', got Tensor"):
        on_column(real_images(1, (8, 8), 1))
    with pytest.raises(TypeError, match="a function of images, got int"):
        OnColumn(16)
    with pytest.raises(TypeError, match="the name of a column, got 0"):
        OnColumn(pxfast.Purifier(16, model=tiny_model), 0)


def test_it_can_be_sent_to_other_processes(tiny_model):
    images = real_images(1, (8, 8), 4)
    purifier = pxfast.Purifier(8, model=tiny_model)
    on_column = OnColumn(purifier, column="data")
    again = pickle.loads(pickle.dumps(on_column))
    assert repr(again) == repr(on_column) == f"OnColumn({purifier!r}, 'data')"
    assert torch.equal(again({"data": images})["data"], purifier(images))


def hugging_face(monkeypatch):
    """Hugging Face's library, which asks no host for anything."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    return datasets


@pytest.mark.external
@pytest.mark.parametrize("channels", [1, 3])
def test_a_dataset_of_hugging_face_with_pictures_is_mapped(tiny_model, tiny_colour_model, monkeypatch, channels):
    datasets = hugging_face(monkeypatch)
    images, model = real_images(channels, (8, 8), 5), tiny_model if channels == 1 else tiny_colour_model
    pictures = [array_pillow(image) for image in images.numpy()]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    names = {
        "dataset": datasets.Dataset.from_dict({"image": pictures, "label": list(range(5))}, features=features),
        "purifier": pxfast.Purifier(16, model=model),
    }
    exec(python_blocks("Hugging Face datasets")[0], names)
    expected = pxfast.purify(images, 16, model=model).numpy()
    one_by_one = names["dataset"].map(names["OnColumn"](names["purifier"]))
    for found in (names["purified"], one_by_one):
        assert found.features == features
        assert list(found["label"]) == list(range(5))
        assert all(isinstance(picture, Image.Image) for picture in found["image"])
        np.testing.assert_array_equal([pillow_array(picture, "it") for picture in found["image"]], expected)


@pytest.mark.external
def test_a_dataset_of_hugging_face_with_arrays_is_mapped(tiny_model, monkeypatch):
    datasets = hugging_face(monkeypatch)
    images = real_images(1, (8, 8), 5).numpy()
    features = datasets.Features({"image": datasets.Array3D((1, 8, 8), "uint8"), "label": datasets.Value("int64")})
    names = {
        "dataset": datasets.Dataset.from_dict({"image": images, "label": np.arange(5)}, features=features),
        "purifier": pxfast.Purifier(16, model=tiny_model),
    }
    expected = pxfast.purify(images, 16, model=tiny_model)
    as_lists, as_arrays = python_blocks("Hugging Face datasets")
    exec(as_lists, names)
    assert names["purified"].features == features
    np.testing.assert_array_equal(names["purified"].with_format("numpy")[:]["image"], expected)
    exec(as_arrays, names)
    found = names["purified"][:]
    np.testing.assert_array_equal(found["image"], expected)
    assert found["image"].dtype == np.uint8
    assert list(found["label"]) == list(range(5))


@pytest.mark.parametrize(
    "form",
    [
        lambda images: images.numpy().tolist(),
        lambda images: (images.double() / 255).numpy().tolist(),
        lambda images: list(images),
        lambda images: list(images.numpy()),
        lambda images: [array_pillow(image) for image in images.numpy()],
        lambda images: images[0].numpy().tolist(),
        lambda images: array_pillow(images[0].numpy()),
    ],
)
def test_a_column_comes_back_as_it_came(tiny_colour_model, form):
    images = real_images(3, (8, 8), 3)
    purifier = pxfast.Purifier(16, model=tiny_colour_model)
    given = form(images)
    found = OnColumn(purifier)({"image": given})["image"]
    assert type(found) is type(given) or isinstance(given, Image.Image)
    expected = form(purifier(images))
    if isinstance(given, list):
        assert type(found[0]) is type(given[0])
        assert all(
            np.array_equal(np.asarray(ours), np.asarray(theirs)) for ours, theirs in zip(found, expected, strict=True)
        )
    else:
        assert (found.mode, found.size) == (given.mode, given.size)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_an_empty_column_is_passed_on():
    assert OnColumn(lambda images: images)({"image": []}) == {"image": []}


@pytest.mark.parametrize(
    ("column", "error", "words"),
    [
        (
            [Image.new("L", (8, 8)), Image.new("L", (8, 4))],
            ValueError,
            r"one shape .* image 1 .*\(1, 8, 8\) and \(1, 4",
        ),
        ([Image.new("RGBA", (8, 8))], ValueError, "image 0 in 'image' has pixels of mode RGBA with transparency"),
        ([Image.new("I;16", (8, 8))], ValueError, "image 0 in 'image' has pixels of mode I;16, expected 8-bit grey"),
        (Image.new("CMYK", (8, 8)), ValueError, "the image in 'image' has pixels of mode CMYK"),
        ([Image.new("L", (8, 8)), "a.png"], TypeError, "expected Pillow's images in 'image', got str as image 1"),
        ([Image.new("L", (8, 8)), None], TypeError, "expected Pillow's images in 'image', got NoneType as image 1"),
        ([np.zeros((1, 8, 8)), torch.zeros(1, 8, 8)], TypeError, "expected images of ndarray in 'image'"),
        ([[[1, 2], [3]]], ValueError, "expected lists of numbers of one shape"),
        (["a.png", "b.png"], ValueError, "expected lists of numbers of one shape"),
        ([[[0, 256]]], ValueError, r"expected integers in 0\.\.255 in 'image', got 0 to 256"),
        ("a.png", TypeError, "got str"),
    ],
)
def test_columns_of_other_things_are_refused(tiny_model, column, error, words):
    with pytest.raises(error, match=words):
        OnColumn(pxfast.Purifier(16, model=tiny_model))({"image": column})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_image_of_torchvisions_stays_one_for_later_transforms(
    tiny_model: pxfast.PixelCNN, dtype: torch.dtype
) -> None:
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    v2 = pytest.importorskip("torchvision.transforms.v2")
    images = real_images(1, (8, 8), 3)
    images = images if dtype == torch.uint8 else images / 255
    scorer = ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=4)).eval().requires_grad_(False)
    purifier = pxfast.Purifier(16, model=tiny_model)
    for defence in (purifier, pxfast.ADPPurifier(0.1, steps=1, model=scorer), FeatureSqueezing()):
        found = defence(tv_tensors.Image(images))
        assert type(found) is tv_tensors.Image
        assert torch.equal(found.as_subclass(Tensor), defence(images))
    assert type(pxfast.purify(tv_tensors.Image(images), model=tiny_model)) is tv_tensors.Image
    assert type(pxfast.bits_per_dim(tv_tensors.Image(images), model=tiny_model)) is Tensor
    pipeline = v2.Compose([purifier, v2.RandomHorizontalFlip(1.0)])
    label = torch.zeros(8, 8)  # which is no image, and which torchvision leaves alone beside one
    turned, kept = v2.RandomHorizontalFlip(1.0)(purifier(tv_tensors.Image(images[0])), label)
    assert torch.equal(turned.as_subclass(Tensor), purifier(images[0]).flip(-1))
    assert kept is label
    assert type(pipeline(tv_tensors.Image(images[0]))) is tv_tensors.Image
