"""Standard output and standard error that are full, closed by their reader, or strict about names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.helpers import command_line, environment, error_line, run_python

from pxfast.data.image_files import write_png

pytestmark = pytest.mark.process
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


@pytest.fixture
def source(images, tmp_path) -> Path:
    np.save(tmp_path / "in.npy", images.numpy())
    return tmp_path / "in.npy"


def run(*arguments: object, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **changes: str):
    words = command_line(*arguments)
    return subprocess.run(words, env=environment(**changes), stdout=stdout, stderr=stderr, timeout=240)


@needs_full
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_told(buffered: str) -> None:
    with FULL.open("wb") as full:
        done = run("--version", stdout=full, PYTHONUNBUFFERED=buffered)
    assert done.returncode == 2
    line = error_line(done.stderr.decode())
    assert line == "error: standard output can't be written to: No space left on device"
    assert done.stderr.count(b"\n") == 1, "the interpreter does not fail once more"


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_pipe_whose_reader_has_gone_ends_a_command_silently(buffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("--version", stdout=writer, PYTHONUNBUFFERED=buffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@needs_full
def test_a_full_disk_behind_standard_error_stops_nothing(model, source, reference, tmp_path) -> None:
    with FULL.open("wb") as full:
        assert run("purify", source, tmp_path / "out.npy", *reference, stderr=full).returncode == 0
        assert run("bpd", tmp_path / "missing.npy", stderr=full).returncode == 2
    assert np.load(tmp_path / "out.npy").shape == (3, 1, 8, 8)


def first_words(lines: bytes) -> list[bytes]:
    return [line.split(b"\t")[0] for line in lines.splitlines()]


def test_names_that_are_no_text_are_printed_as_they_are(model, images, tmp_path) -> None:
    """By a standard output that is strict, after all the work."""
    source = tmp_path / "in"
    source.mkdir()
    write_png(images[0], source / "a.png")
    write_png(images[1], source / "\u00e9.png")
    for name, odd in (("a.png", b"b\xff.png"), ("\u00e9.png", "c\u00e9.png".encode())):
        try:
            os.rename(os.fsencode(source / name), os.path.join(os.fsencode(source), odd))
        except OSError:
            pytest.skip("this file system has names of text alone")
    done = run("bpd", source, "--model", model, PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 0, done.stderr
    assert [line.split(b"\t")[0] for line in done.stdout.splitlines()] == [
        b"b\xff.png",
        "c\u00e9.png".encode(),
        b"mean",
    ]
    done = run("bpd", source, "--model", model, PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0, done.stderr
    assert first_words(done.stdout) == [b"b\xff.png", b"c\\xe9.png", b"mean"]
    rows = tmp_path / "rows.tsv"
    assert run("bpd", source, "--model", model, "--out", rows).returncode == 0
    assert first_words(rows.read_bytes()) == [b"b\xff.png", "c\u00e9.png".encode()]


OUT_OF_A_NOTEBOOK = """
import sys
from pxfast.cli.main import main
sys.argv = ["pxfast", "figures", "density", "nowhere"]
try:
    main()
except SystemExit:
    import matplotlib
    print(matplotlib.get_backend().lower())
"""


def test_a_notebooks_way_to_draw_need_not_be_here(tmp_path) -> None:
    said = run_python(OUT_OF_A_NOTEBOOK, MPLBACKEND="module://matplotlib_inline.no_such_backend")
    assert said == "agg\n"


def test_a_system_without_sync_writes_folders(run_here, images, reference, monkeypatch, tmp_path) -> None:
    monkeypatch.delattr(os, "sync", raising=False)
    (tmp_path / "in").mkdir()
    write_png(images[0], tmp_path / "in" / "a.png")
    run_here("purify", tmp_path / "in", tmp_path / "out", *reference)
    assert os.listdir(tmp_path / "out") == ["a.png"]
