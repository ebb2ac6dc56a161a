"""``pxfast bpd``."""

import json

import numpy as np
import pytest
import torch
from support.helpers import run_command

import pxfast
from pxfast.base.parts import parts_path
from pxfast.cli import rows
from pxfast.pixelcnn import likelihood


@pytest.mark.process
def test_bpd(run_here, model, images, tmp_path):
    np.save(tmp_path / "in.npy", images.numpy())
    expected = pxfast.bits_per_dim(images, model=model)
    lines = run_command("bpd", tmp_path / "in.npy", "--model", model).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["0", "1", "2", "mean"]
    found = torch.tensor([float(line.split("\t")[1]) for line in lines])
    torch.testing.assert_close(found, torch.cat((expected, expected.mean()[None])), rtol=0, atol=1e-4)
    facts = json.loads(run_here("bpd", tmp_path / "in.npy", "--model", model, "--json")[0])
    assert [image["name"] for image in facts["images"]] == ["0", "1", "2"]
    assert facts["mean"] == pytest.approx(float(expected.mean()), abs=1e-5)
    one_by_one, err = run_here("bpd", tmp_path / "in.npy", "--model", model, "--batch-size", 1, "--device", "cpu")
    assert [line.split("\t")[0] for line in one_by_one.splitlines()] == ["0", "1", "2", "mean"]
    assert not err, "the result is the last that is said"


def test_a_stopped_run_goes_on_where_it_was(run_here, refused, model, images, tmp_path, monkeypatch):
    """What is finished is not measured again, and the file is that of a run in one go; other settings don't mix."""
    source, out = tmp_path / "in.npy", tmp_path / "bits.tsv"
    np.save(source, images.numpy())
    words = ["bpd", source, "--model", model, "--batch-size", 1]
    run_here(*words, "--out", tmp_path / "whole.tsv", "--quiet")
    measure, measured = likelihood.bits_per_dim, []

    def stopping(batch, **options):
        measured.append(batch)
        if len(measured) == 3:
            raise OSError("stopped")
        return measure(batch, **options)

    monkeypatch.setattr(rows, "PART_SECONDS", 0.0)
    monkeypatch.setattr(likelihood, "bits_per_dim", stopping)
    assert "stopped" in refused(*words, "--out", out)
    assert not out.exists()
    assert "other settings (batch_size)" in refused(*words, "--out", out, "--batch-size", 2)
    np.save(source, images.flip(0).numpy())
    assert "other settings (images)" in refused(*words, "--out", out)
    np.save(source, images.numpy())
    printed, _ = run_here(*words, "--out", out, "--quiet")
    assert len(measured) == 4, "the one that was left"
    assert out.read_text() == (tmp_path / "whole.tsv").read_text()
    assert printed == run_here(*words, "--quiet")[0].splitlines(True)[-1], "the mean"
    assert not parts_path(out).exists()
    assert "exists already" in refused(*words, "--out", out)


def test_the_file_has_what_is_printed(run_here, refused, model, images, tmp_path):
    np.save(tmp_path / "in.npy", images.numpy())
    words = ["bpd", tmp_path / "in.npy", "--model", model]
    lines = run_here(*words)[0].splitlines()
    run_here(*words, "--out", tmp_path / "a.tsv")
    assert (tmp_path / "a.tsv").read_text().splitlines() == lines[:-1]
    facts = json.loads(run_here(*words, "--out", tmp_path / "a.json", "--json")[0])
    assert facts.pop("files") == [str(tmp_path / "a.json")]
    assert json.loads((tmp_path / "a.json").read_text()) == facts
    assert "must have the suffix .tsv or .json" in refused(*words, "--out", tmp_path / "a.txt")
    assert not parts_path(tmp_path / "a.txt").exists()
