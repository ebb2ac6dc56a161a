"""``pxfast sample``, as a user runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import pxfast

MODEL = ("--model", "fashion-mnist")


def test_samples_as_array_and_as_grid(run_here, tmp_path):
    array, grid = tmp_path / "samples.npy", tmp_path / "samples.png"
    words = ["sample", "5", *MODEL, "--out", array, "--grid", grid, "--per-row", "3", "--seed", "7"]
    out, err = run_here(*words, "--json")
    assert "5/5 images" in err
    assert "\r" not in err
    facts = json.loads(out)
    assert facts["images"] == 5
    assert facts["images_per_second"] == pytest.approx(5 / facts["seconds"])
    assert facts["engine"] in pxfast.engines.registry.ENGINES
    assert facts["precision"] in ("fp32", "bf16")
    assert facts["files"] == [str(array), str(grid)]
    samples = np.load(array)
    np.testing.assert_array_equal(samples, pxfast.sample(5, model="fashion-mnist", seed=7).numpy())
    with Image.open(grid) as picture:
        assert picture.mode == "L"
        width, height = picture.size
    assert width > 3 * 2 * 28
    assert 2 * 2 * 28 < height < 3 * 2 * 28
    more = tmp_path / "more.npy"
    assert run_here("sample", "2", *MODEL, "--out", more, "--first", "3", "--seed", "7", "--quiet") == ("", "")
    np.testing.assert_array_equal(np.load(tmp_path / "more.npy"), samples[3:])


def test_nothing_is_overwritten_and_refusals_come_before_the_work(refused, tmp_path):
    assert "pass --grid, --out or both" in refused("sample", *MODEL)
    (tmp_path / "there.png").write_bytes(b"mine")
    assert "exists already" in refused("sample", *MODEL, "--grid", tmp_path / "there.png")
    assert (tmp_path / "there.png").read_bytes() == b"mine"
    assert ".png" in refused("sample", *MODEL, "--grid", tmp_path / "grid.jpg")
    assert "no such folder" in refused("sample", *MODEL, "--out", tmp_path / "missing" / "samples.npy")
    assert "temperature" in refused("sample", *MODEL, "--out", tmp_path / "samples.npy", "--temperature", "0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.png"]
