"""``pxfast detect``."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pxfast.cli import rows
from pxfast.pixelcnn.files import save
from pxfast.pixeldefend.detection import Detector


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def options(tiny_model, images, tmp_path) -> list:
    save(tiny_model, tmp_path / "model.safetensors", dtype=torch.float32)
    detector = Detector(tmp_path / "model.safetensors").fit(images[:20])
    detector.save(tmp_path / "detector.safetensors")
    return ["--model", tmp_path / "model.safetensors", "--detector", tmp_path / "detector.safetensors"]


def test_a_line_per_image(run_here, options, images, tmp_path):
    np.save(tmp_path / "in.npy", images[20:].numpy())
    expected = Detector.load(options[3], options[1]).p_value(images[20:])
    out, err = run_here("detect", tmp_path / "in.npy", "--alpha", 0.5, "--batch-size", 3, *options)
    assert not err, "the result is the last that is said"
    *lines, summary = out.splitlines()
    names, p_values, verdicts = zip(*(line.split("\t") for line in lines), strict=True)
    assert names == ("0", "1", "2", "3")
    assert [float(value) for value in p_values] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [verdict == "adversarial" for verdict in verdicts] == (expected <= 0.5).tolist()
    assert summary == f"{int((expected <= 0.5).sum())} of 4 images have a p-value of at most 0.5"


def test_names_with_tabs_and_line_ends_stay_in_one_column(run_here, options, images, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a\tb.png", "c\nd.png", "e\\f.png"):
        Image.fromarray(images[20, 0].numpy()).save(folder / name)
    expected = ["a\\tb.png", "c\\nd.png", "e\\\\f.png"]
    run_here("detect", folder, "--alpha", 0.5, "--out", tmp_path / "p.tsv", *options)
    assert [line.split("\t")[0] for line in (tmp_path / "p.tsv").read_text().splitlines()] == expected
    run_here("bpd", folder, "--out", tmp_path / "b.tsv", *options[:2])
    assert [line.split("\t")[0] for line in (tmp_path / "b.tsv").read_text().splitlines()] == expected


def test_several_sources_as_json(run_here, options, images, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(images[20, 0].numpy()).save(folder / "a.png")
    Image.fromarray(images[21, 0].numpy()).save(tmp_path / "b.png")
    np.save(tmp_path / "c.npy", images[22:].numpy())
    sources = [folder, tmp_path / "b.png", tmp_path / "c.npy"]
    facts = json.loads(run_here("detect", *sources, "--json", *options)[0])
    names = [str(folder / "a.png"), str(sources[1]), f"{sources[2]}:0", f"{sources[2]}:1"]
    assert [image["name"] for image in facts["images"]] == names
    expected = Detector.load(options[3], options[1]).p_value(images[20:]).tolist()
    assert [image["p_value"] for image in facts["images"]] == pytest.approx(expected)
    assert facts["alpha"] == 0.05
    assert [image["adversarial"] for image in facts["images"]] == [p <= 0.05 for p in expected]


def test_a_stopped_run_goes_on_where_it_was(run_here, refused, options, images, tmp_path, monkeypatch):
    """Over several sources; the file is that of a run in one go."""
    np.save(tmp_path / "a.npy", images[:3].numpy())
    np.save(tmp_path / "b.npy", images[20:].numpy())
    words = ["detect", tmp_path / "a.npy", tmp_path / "b.npy", "--alpha", 0.5, "--batch-size", 2, *options]
    *lines, summary = run_here(*words)[0].splitlines()
    judge, judged = Detector.judge, []

    def stopping(self, batch, *arguments):
        judged.append(len(batch))
        if len(judged) == 4:
            raise OSError("stopped")
        return judge(self, batch, *arguments)

    monkeypatch.setattr(rows, "PART_SECONDS", 0.0)
    monkeypatch.setattr(Detector, "judge", stopping)
    assert "stopped" in refused(*words, "--out", tmp_path / "p.tsv")
    assert "other settings (alpha)" in refused(*words, "--out", tmp_path / "p.tsv", "--alpha", 0.4)
    printed, _ = run_here(*words, "--out", tmp_path / "p.tsv", "--quiet")
    assert judged == [2, 1, 2, 2, 2], "the one that was left"
    assert (tmp_path / "p.tsv").read_text().splitlines() == lines
    assert printed.splitlines() == [summary]


def test_refusals(refused, options, images, tmp_path):
    np.save(tmp_path / "in.npy", images.numpy())
    assert "no such file or folder" in refused("detect", tmp_path / "missing.npy", *options)
    assert "alpha must be a number in (0, 1), got 2.0" in refused("detect", tmp_path / "in.npy", "--alpha", 2, *options)
    assert "with 20 training images" in refused("detect", tmp_path / "in.npy", "--alpha", 0.01, *options)
    assert "call fit(train_images) first" in refused("detect", tmp_path / "in.npy", *options[:2])
    assert "FILES" in refused("detect", *options)
