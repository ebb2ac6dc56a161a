"""Devices by name."""

import pytest
import torch

from pxfast.base.machine import parse_device


def test_devices():
    assert parse_device("cpu") == torch.device("cpu")
    assert parse_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cpu:0", "cuda:x", ""):
        with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got"):
            parse_device(name)
    with pytest.raises(ValueError, match="torch finds"):
        parse_device("cuda:99")
