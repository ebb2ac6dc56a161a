"""Outputs are written whole or not at all: under kill -9, a full disk, an exception, an existing file."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pxfast.base.files import refuse_existing, whole_file


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_success_writes_the_file_with_ordinary_permissions(tmp_path):
    with whole_file(tmp_path / "out.bin") as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        assert not (tmp_path / "out.bin").exists()
    assert names(tmp_path) == {"out.bin"}
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "out.bin").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_exception_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")

    def write_half():
        with whole_file(target) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_half()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"out.bin"}


@pytest.mark.process
def test_kill_in_mid_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    code = f"""
        import sys, time
        from pxfast.base.files import whole_file
        with whole_file({str(target)!r}) as temporary:
            with open(temporary, "wb") as file:
                file.write(b"n" * 1_000_000)
                file.flush()
                print("writing", flush=True)
                time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert target.read_bytes() == b"old"
    assert any(path.stat().st_size >= 1_000_000 for path in tmp_path.iterdir()), "the write was not under way"


@pytest.mark.process
@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors", "folder"])
def test_full_disk_leaves_the_old_output_and_says_so(tmp_path, kind):
    """Every writer, in a process of its own with a limit on the size of files."""
    out = tmp_path / "out" if kind == "folder" else tmp_path / f"out.{kind}"
    if kind == "folder":
        out.mkdir()
        (out / "old.png").write_bytes(b"old")
    else:
        out.write_bytes(b"old")
    before = names(tmp_path)
    code = f"""
        import sys, torch
        from pathlib import Path
        from pxfast.data.image_files import ArrayFile, ImageFolder, TensorFile
        from pxfast.pixelcnn.files import save
        from pxfast import PixelCNN, PixelCNNConfig
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from support.helpers import limit_file_size
        kind, out, source = {kind!r}, Path({str(out)!r}), Path(sys.argv[1])
        images = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
        if kind == "npy":
            import numpy
            numpy.save(source / "in.npy", images.numpy())
            writer = ArrayFile(source / "in.npy").writer
        elif kind == "pt":
            torch.save(images, source / "in.pt")
            writer = TensorFile(source / "in.pt").writer
        elif kind == "folder":
            from PIL import Image
            for i in range(2):
                Image.new("RGB", (256, 256)).save(source / f"{{i}}.png")
            writer = ImageFolder(source).writer
        limit_file_size()
        try:
            if kind == "safetensors":
                save(PixelCNN(PixelCNNConfig((8, 8), 1, 16, 1)), out)
            else:
                with writer(out, force=True) as write:
                    write(images if kind != "npy" else images.numpy())
        except Exception as error:
            print(type(error).__name__, error)
        else:
            print("no error")
    """
    source = tmp_path.parent / f"{tmp_path.name}-source"
    source.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(source)], capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout
    assert names(tmp_path) == before, done.stdout
    if kind == "folder":
        assert names(out) == {"old.png"}
    else:
        assert out.read_bytes() == b"old"


def test_existing_outputs_are_refused_unless_forced(tmp_path):
    target = tmp_path / "out.bin"
    refuse_existing(target, force=False)
    os.symlink(tmp_path / "nowhere", target)
    with pytest.raises(FileExistsError, match=r"out\.bin exists already; pass --force"):
        refuse_existing(target, force=False)
    refuse_existing(target, force=True)
