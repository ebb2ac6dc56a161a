"""The script that makes the shipped log-likelihoods of training images."""

import runpy
import sys

import pytest
import torch
from support.helpers import SOURCE

import pxfast
from pxfast.data.datasets import load_dataset
from pxfast.pixeldefend.detection import Detector, shipped_log_likelihoods_path

NAME = "fashion-mnist"


@pytest.fixture
def make(few_root, tmp_path, monkeypatch):
    """Runs the script for a few images, into a temporary folder."""

    def make(count: int, *more: str) -> None:
        options = ["--root", few_root, "--out", tmp_path, "--model", NAME, "--images", count, *more]
        monkeypatch.setattr(sys, "argv", ["make_detection_assets.py", *map(str, options)])
        runpy.run_path(str(SOURCE / "bench" / "scripts" / "make_detection_assets.py"), run_name="__main__")

    return make


def test_makes_resumes_and_replaces_nothing_unasked(make, few_root, tmp_path, capsys):
    out = tmp_path / shipped_log_likelihoods_path(NAME).name
    images, _ = load_dataset(NAME, few_root, train=True)
    make(6)
    found = Detector.load(out, NAME).log_likelihoods
    torch.testing.assert_close(found, Detector(NAME).fit(images[:6]).log_likelihoods)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]

    written = out.stat().st_mtime_ns
    make(6)
    assert "6 images, as it was" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == written
    with pytest.raises(FileExistsError, match="exists already"):
        make(8)

    killed = Detector(NAME).fit(images[:5])
    killed.log_likelihoods[:] = -1.0  # so that it shows what was computed anew
    killed.save(out.with_suffix(".partial"))
    make(8, "--force")
    resumed = Detector.load(out, NAME).log_likelihoods
    assert resumed[:5].tolist() == [-1.0] * 5
    torch.testing.assert_close(resumed[5:6], found[5:])
    assert len(resumed) == 8
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_a_partial_file_of_other_weights_is_not_gone_on_from(make, few_root, tmp_path):
    out = tmp_path / shipped_log_likelihoods_path(NAME).name
    images, _ = load_dataset(NAME, few_root, train=True)
    other = pxfast.load(NAME)
    with torch.no_grad():
        other.output.b.add_(0.01)
    Detector(other).fit(images[:3]).save(out.with_suffix(".partial"))
    make(4)
    found = Detector.load(out, NAME).log_likelihoods
    torch.testing.assert_close(found, Detector(NAME).fit(images[:4]).log_likelihoods)
