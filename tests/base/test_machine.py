"""Devices by name, and how many processors a process may use."""

from pathlib import Path

import pytest
import torch

from pxfast.base import machine
from pxfast.base.machine import parse_device, processor_quota, usable_processors


def test_devices():
    assert parse_device("cpu") == torch.device("cpu")
    assert parse_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cpu:0", "cpu:", "cuda:x", "cuda:", "cuda:01", "cuda:\u0661", ""):
        with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got"):
            parse_device(name)
    with pytest.raises(ValueError, match="torch finds"):
        parse_device("cuda:99")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
        # the least of a group's and those around it
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/cpu.max": "900000 100000\n",
            },
            3,
        ),
        # the first version, in a container whose group is called as the host calls it
        (
            {
                "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "2:cpuacct:/\n1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/cpu.max": "a b c\n"}, None),
    ],
)
def test_a_containers_quota_is_read(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor_quota(tmp_path) == expected


def test_a_quota_limits_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_quota", lambda: None)
    here = usable_processors()
    assert here >= 1
    for quota in (1, 10_000):
        monkeypatch.setattr(machine, "_quota", lambda quota=quota: quota)
        assert usable_processors() == min(here, quota)
