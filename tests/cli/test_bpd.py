"""``pxfast bpd``."""

import json

import numpy as np
import pytest
import torch
from support.helpers import run_command

import pxfast


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
