"""`pxfast.Purifier` and `OnColumn` in data pipelines; Ray Data's are in test_ray.py."""

import functools
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from support.helpers import SOURCE, bundled_images, real_images
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import pxfast
from pxfast.defences import OnColumn


class Images(Dataset):
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
    images = bundled_images(1)[:6]
    expected = pxfast.purify(images, 16)
    collated, transformed = python_blocks("torch DataLoader")
    names = {"dataset": TensorDataset(images, torch.arange(6))}
    exec(collated, names)
    ((found, labels),) = names["loader"]
    assert torch.equal(found, expected)
    assert labels.tolist() == list(range(6))
    from PIL import Image

    names["dataset"] = Images(6)
    names["dataset"].images = [Image.fromarray(image) for image in names["dataset"].images]
    exec(transformed, names)
    assert torch.equal(torch.stack([names["dataset"][i] for i in range(6)]), expected)


def purify_samples(purifier: OnColumn, samples: list):
    return purifier(default_collate(samples))


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


def test_a_dataset_of_hugging_face_is_mapped(tiny_model, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    images = real_images(1, (8, 8), 5).numpy()
    features = datasets.Features({"image": datasets.Array3D((1, 8, 8), "uint8"), "label": datasets.Value("int64")})
    names = {
        "dataset": datasets.Dataset.from_dict({"image": images, "label": np.arange(5)}, features=features),
        "purifier": pxfast.Purifier(16, model=tiny_model),
    }
    (block,) = python_blocks("Hugging Face datasets")
    exec(block, names)
    found = names["purified"][:]
    np.testing.assert_array_equal(found["image"], pxfast.purify(images, 16, model=tiny_model))
    assert found["image"].dtype == np.uint8
    assert list(found["label"]) == list(range(5))
