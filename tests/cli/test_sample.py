"""``pxfast sample``, as a user runs it."""

from __future__ import annotations

import numpy as np
from PIL import Image

import pxfast

MODEL = ("--model", "fashion-mnist")


def test_samples_as_array_and_as_grid(run_here, tmp_path):
    array, grid = tmp_path / "samples.npy", tmp_path / "samples.png"
    _, err = run_here("sample", "5", *MODEL, "--out", array, "--grid", grid, "--per-row", "3", "--seed", "7")
    assert "5/5" in err
    samples = np.load(array)
    np.testing.assert_array_equal(samples, pxfast.sample(5, model="fashion-mnist", seed=7).numpy())
    with Image.open(grid) as picture:
        assert picture.mode == "L"
        width, height = picture.size
    assert width > 3 * 2 * 28
    assert 2 * 2 * 28 < height < 3 * 2 * 28
    run_here("sample", "2", *MODEL, "--out", tmp_path / "more.npy", "--first", "3", "--seed", "7")
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
