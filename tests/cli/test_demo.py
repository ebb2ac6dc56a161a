"""`pxfast demo` as a newcomer runs it: the table, the figures and the picture."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from support.helpers import environment, error_line

from pxfast.base.files import claimed
from pxfast.cli.demonstration import CLASSES, Stage, load_demo_images, table, write_picture
from pxfast.cli.stage_picture import cell, picture_size, scale_of

pytestmark = pytest.mark.process


def pxfast(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command line in a folder."""
    command = [sys.executable, "-c", "from pxfast.cli.main import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)


class Demo(NamedTuple):
    folder: Path
    output: str
    seconds: float  # of processor time: the wall's clock counts what else the machine does


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = pxfast(folder, "demo")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    return Demo(folder, done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def test_takes_less_than_half_a_minute(demo: Demo) -> None:
    assert demo.seconds < 30


def test_table_has_a_line_per_image(demo: Demo) -> None:
    lines = [line.split() for line in demo.output.splitlines()]
    rows = [line for line in lines if len(line) == 9 and line[0] in CLASSES]
    assert [row[0] for row in rows] == [CLASSES[label] for label in load_demo_images().labels]
    for row in rows:
        assert row[1] == row[0]  # every clean image is classified rightly
        assert float(row[6]) < float(row[4])  # and purification makes every attacked one likelier


def test_purification_repairs_most_of_what_the_attack_did(demo: Demo) -> None:
    (line,) = [line for line in demo.output.splitlines() if line.startswith("all ")]
    figures = [float(value) for value in re.findall(r"[\d.]+", line)]
    clean, attacked, purified, purified_clean = zip(figures[::2], figures[1::2], strict=True)
    assert clean[0] == 100
    assert "chosen among those that the classifier gets right" in demo.output
    assert attacked[0] < purified[0]
    assert abs(purified[1] - clean[1]) < 0.5 * abs(attacked[1] - clean[1])
    assert purified_clean[1] < clean[1]


def test_says_how_fast_and_where_the_picture_is(demo: Demo) -> None:
    speed = re.search(r"purified 32 images in ([\d.]+) s: ([\d.]+) images/s", demo.output)
    assert speed
    seconds, rate = map(float, speed.groups())
    assert rate == pytest.approx(32 / seconds, rel=0.05)
    assert f"picture: {demo.folder / 'pxfast-demo.png'}" in demo.output
    assert [path.name for path in demo.folder.iterdir()] == ["pxfast-demo.png"]


def test_picture_shows_the_images(demo: Demo) -> None:
    """Pixel for pixel: the first two rows the shipped images, the last 8 times the difference of the two before it."""
    with Image.open(demo.folder / "pxfast-demo.png") as file:
        assert file.size == picture_size(4, 10, 28, 28)
        picture = np.asarray(file.convert("RGB")).astype(int)
    shipped = load_demo_images()

    def shown(row: int, column: int) -> np.ndarray:
        left, top = cell(row, column, 28, 28)
        pixels = picture[top : top + 28 * scale_of(28, 28), left : left + 28 * scale_of(28, 28)]
        small = pixels[:: scale_of(28, 28), :: scale_of(28, 28), 0]
        assert (pixels == np.kron(small, np.ones((scale_of(28, 28), scale_of(28, 28)), int))[:, :, None]).all()
        return small

    for column in range(10):
        clean, attacked, purified, difference = (shown(row, column) for row in range(4))
        assert (clean == shipped.clean[column, 0].numpy()).all()
        assert (attacked == shipped.attacked[column, 0].numpy()).all()
        assert 0 < abs(purified - attacked).max() <= 32
        assert (difference == np.clip(128 + 8 * (purified - attacked), 0, 255)).all()
    for row in range(3):  # captions under the images
        left, top = cell(row, 0, 28, 28)
        assert (picture[top + 28 * scale_of(28, 28) : cell(row + 1, 0, 28, 28)[1], left:] < 128).any()


def test_an_existing_picture_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    existing = tmp_path / "mine.png"
    existing.write_text("mine")
    done = pxfast(tmp_path, "demo", "--out", "mine.png")
    assert done.returncode != 0
    assert "mine.png" in done.stderr
    assert "--force" in done.stderr
    assert "Traceback" not in done.stderr
    assert existing.read_text() == "mine"
    text = tmp_path / "x.txt"
    assert "must have the suffix .png" in error_line(pxfast(tmp_path, "demo", "--out", "x.txt").stderr)
    assert not text.exists()


class Canvas:
    """What writes a picture."""

    @staticmethod
    def print_png(file: BinaryIO) -> None:
        file.write(b"picture")


def test_a_picture_goes_to_the_first_name_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_picture(Canvas()) == Path("pxfast-demo.png")
    Path("pxfast-demo-1.png").touch()
    with claimed("pxfast-demo-2.png"):  # by another demonstration
        assert write_picture(Canvas()) == Path("pxfast-demo-3.png")
    assert Path("pxfast-demo-1.png").read_bytes() == b""


def test_json_has_what_the_table_shows(demo: Demo, run_here, tmp_path: Path) -> None:
    out, err = run_here("demo", "--out", tmp_path / "demo.png", "--device", "cpu", "--json")
    facts = json.loads(out)
    assert facts["images"] == 32
    assert facts["images_per_second"] == pytest.approx(32 / facts["seconds"])
    assert facts["files"] == [str(tmp_path / "demo.png")]
    assert "32/32 images" in err
    (line,) = [line for line in demo.output.splitlines() if line.startswith("all ")]
    shown = [f"{100 * stage['accuracy']:.0f}, {stage['bits_per_dim']:.2f}" for stage in facts["stages"].values()]
    assert shown == [f"{right}, {bits}" for right, bits in re.findall(r"(\d+) % +([\d.]+)", line)]


def test_table_marks_wrong_labels() -> None:
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    stage = Stage("clean", images, torch.tensor([1.0, 2.0]), torch.tensor([9, 4]))
    lines = table([stage], torch.tensor([9, 2]))
    assert lines[3].split() == ["Boot", "Boot", "1.00"]
    assert lines[4].split() == ["Pullover", "Coat*", "2.00"]
    assert lines[-1].split() == ["all", "50", "%", "1.50"]
