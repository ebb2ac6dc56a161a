"""The files beside this module are those that README.md lists, and their maker makes them again."""

import hashlib
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from support.golden import BUNDLED, COMPLETE, NAMES
from support.helpers import SOURCE, bundled_images, bundled_labels

from pxfast.data.datasets import load_dataset

LISTED = dict(re.findall(r"^\| `(\S+)` \| `([0-9a-f]{64})` \|$", (BUNDLED / "README.md").read_text(), re.MULTILINE))
MAKER = runpy.run_path(str(SOURCE / "bench" / "scripts" / "make_test_data.py"))


def assert_same(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with np.load(path) as file:
        assert file.files == list(arrays)
        for name, array in arrays.items():
            assert file[name].dtype == array.dtype, name
            np.testing.assert_array_equal(file[name], array, err_msg=name)


def test_every_file_is_listed() -> None:
    assert set(LISTED) == {path.name for path in BUNDLED.iterdir() if path.suffix not in (".py", ".md", "")}


@pytest.mark.parametrize("name", LISTED)
def test_a_file_is_the_one_that_was_listed(name: str) -> None:
    assert hashlib.sha256((BUNDLED / name).read_bytes()).hexdigest() == LISTED[name]


@pytest.mark.whole  # in the inner loop: the checksums of the files
def test_real_images_are_the_first_test_images(data_root: Path) -> None:
    assert_same(BUNDLED / "real_images.npz", MAKER["real_images"](data_root))
    for channels, name in ((1, "fashion-mnist"), (3, "cifar10")):
        _, labels = load_dataset(name, data_root, train=False)
        assert torch.equal(bundled_labels(channels), labels[: len(bundled_images(channels))])


@pytest.mark.data
@pytest.mark.skipif(not COMPLETE.is_dir(), reason="the complete golden files are not beside this repository")
@pytest.mark.parametrize("name", NAMES)
def test_golden_files_are_cuts_of_the_complete_ones(name: str) -> None:
    assert_same(BUNDLED / f"{name}.npz", MAKER["golden_cut"](COMPLETE / f"{name}.npz"))
