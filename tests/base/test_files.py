"""Outputs are written whole or not at all: under kill -9, a full disk, an exception, an existing file."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pxfast.base import locks
from pxfast.base.files import check_outputs, claimed, output_files, output_folder, refuse_existing, whole_file


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_success_writes_the_file_with_ordinary_permissions(tmp_path):
    with whole_file(tmp_path / "out.bin") as temporary:
        assert temporary.name == "out.bin", "libraries that go by the suffix see that of the output"
        temporary.touch(0o600)  # as safetensors makes its files
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
    assert any(path.stat().st_size >= 1_000_000 for path in tmp_path.rglob("out.bin")), "the write was not under way"
    with whole_file(target) as temporary:
        assert len(names(tmp_path)) == 2, "what the killed process left is gone"
        temporary.write_bytes(b"new")
    assert names(tmp_path) == {"out.bin"}


@pytest.mark.process
@pytest.mark.parametrize("kind", ["npy", "pt", "png", "safetensors", "folder", "array", "canvas"])
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
        from pxfast.data.image_files import open_collection
        from pxfast.data.image_files import Contents
        from pxfast.data.image_writers import image_writer
        from pxfast.pixelcnn.files import save
        from pxfast import PixelCNN, PixelCNNConfig
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from support.helpers import limit_file_size
        kind, out, source = {kind!r}, Path({str(out)!r}), Path(sys.argv[1])
        images = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
        if kind == "npy":
            import numpy
            numpy.save(source / "in.npy", images.numpy())
            given = source / "in.npy"
        elif kind == "pt":
            torch.save(images, source / "in.pt")
            given = source / "in.pt"
        elif kind == "array":
            from pxfast.base.files import output_files
            from pxfast.data.image_files import write_npy
        elif kind == "folder":
            from PIL import Image
            for i in range(2):
                Image.new("RGB", (256, 256)).save(source / f"{{i}}.png")
            given = source
        elif kind == "canvas":
            from pxfast.base.files import output_folder
            from pxfast.cli.stage_picture import Row, draw_rows, write_canvas
            canvas = draw_rows([Row("", [], images)])
        limit_file_size()
        try:
            if kind == "safetensors":
                save(PixelCNN(PixelCNNConfig((8, 8), 1, 16, 1)), out, force=True)
            elif kind == "array":
                with output_files(out, force=True) as (temporary,):
                    write_npy(images.numpy(), temporary)
            elif kind == "canvas":  # beside a folder
                with output_folder(source / "pictures", out, force=True, check=print) as (_, (temporary,)):
                    write_canvas(canvas, temporary)
            elif kind == "png":
                with image_writer(out, Contents(["out"], (3, 256, 256)), force=True) as (write, _):
                    write(images[:1])
            else:
                with image_writer(out, open_collection(given).contents(), force=True) as (write, _):
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
    assert f"File too large: {str(out)!r}" in done.stdout
    assert names(tmp_path) == before, done.stdout
    if kind == "folder":
        assert names(out) == {"old.png"}
    else:
        assert out.read_bytes() == b"old"


def test_existing_outputs_are_refused_unless_forced(tmp_path):
    target = tmp_path / "out.bin"
    refuse_existing(target, force=False)
    os.symlink(tmp_path / "nowhere", target)
    for refuse in (refuse_existing, lambda path, force: output_files(path, force=force).__enter__()):
        with pytest.raises(FileExistsError, match=r"out\.bin exists already; pass --force"):
            refuse(target, force=False)
    refuse_existing(target, force=True)
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(IsADirectoryError, match="folder is a folder, expected the path of a file"),
        output_files(tmp_path / "folder", force=True),
    ):
        pass
    assert names(tmp_path) == {"out.bin", "folder"}


def test_two_outputs_have_two_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    os.symlink("sub", "link")
    for first, second in (("a", "a"), ("a", tmp_path / "a"), ("sub/a", "link/a")):
        with pytest.raises(ValueError, match=f"a path of its own for each output, got {first} and {second}"):
            check_outputs(first, second, force=True)
    with pytest.raises(ValueError, match="a path of its own for each output, got out and out"):
        check_outputs("out", folder="out", force=False)
    with pytest.raises(ValueError, match="link/out/a lies in sub/out, which is an output of its own"):
        check_outputs("link/out/a", folder="sub/out", force=False)
    check_outputs("sub/a", "link/b", folder="c", force=True)
    assert names(tmp_path) == {"sub", "link"}


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / ".a.lock").symlink_to(elsewhere)
    with pytest.raises(FileExistsError, match=r"\.a\.lock is a link"), claimed(tmp_path / "a"):
        pass
    assert not elsewhere.exists()


def test_another_users_lock_that_was_left_is_taken_or_named(tmp_path, monkeypatch):
    lock, readable = tmp_path / ".a.lock", True
    lock.touch()
    system = os.open

    def another_users(path, flags, *mode):
        if Path(path) == lock and (not readable or flags & os.O_RDWR):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return system(path, flags, *mode)

    monkeypatch.setattr(os, "open", another_users)
    with claimed(tmp_path / "a"):
        assert lock.exists()
        with pytest.raises(BlockingIOError, match="another process is writing"), claimed(tmp_path / "a"):
            pass
    lock.touch()
    readable = False
    message = rf"the lock {lock} is another user's and can't be opened"
    with pytest.raises(PermissionError, match=message), claimed(tmp_path / "a"):
        pass


def write_both(folder: Path, force: bool = False, meanwhile=lambda: None) -> None:
    with output_files(folder / "a", folder / "b", force=force) as (a, b):
        a.write_text("new a")
        b.write_text("new b")
        meanwhile()


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    """Not even by half of several outputs; with force it is."""
    target = tmp_path / "b"
    with pytest.raises(FileExistsError, match="b exists already: it appeared while this was running"):
        write_both(tmp_path, meanwhile=lambda: target.write_text("precious"))
    assert target.read_text() == "precious"
    assert names(tmp_path) == {"b"}
    target.unlink()
    with pytest.raises(FileExistsError):
        write_both(tmp_path, meanwhile=lambda: target.symlink_to("nowhere"))
    assert target.is_symlink()
    target.unlink()
    write_both(tmp_path, force=True, meanwhile=lambda: target.write_text("precious"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new a", "b": "new b"}


def test_nothing_is_replaced_where_files_have_no_links(tmp_path, monkeypatch):
    """Such as on a memory stick."""

    def no_links(source, target):
        raise OSError(errno.EPERM, "Operation not permitted", str(target))

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(FileExistsError, match="appeared"):
        write_both(tmp_path, meanwhile=(tmp_path / "a").touch)
    assert (tmp_path / "a").read_bytes() == b""
    (tmp_path / "a").unlink()
    write_both(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new a", "b": "new b"}


def write_folder(folder: Path, force: bool = False, meanwhile=lambda: None) -> None:
    with output_folder(folder, force=force, check=lambda path: None) as (temporary, _):
        (temporary / "new.png").write_text("new")
        meanwhile()


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    out = tmp_path / "out"

    def appear():
        out.mkdir()
        (out / "precious").touch()

    with pytest.raises(FileExistsError, match="out exists already: it appeared while this was running"):
        write_folder(out, meanwhile=appear)
    assert names(out) == {"precious"}
    (out / "precious").unlink()
    out.rmdir()
    with pytest.raises(FileExistsError, match="appeared"):
        write_folder(out, meanwhile=out.touch)
    assert out.is_file()
    assert names(tmp_path) == {"out"}


def write_folder_and_file(out: Path, meanwhile=lambda: None) -> None:
    with output_folder(out, out.with_name("grid"), force=False, check=lambda path: None) as (temporary, (grid,)):
        (temporary / "new.png").write_text("new")
        grid.write_text("new grid")
        meanwhile()


def test_a_file_does_not_appear_without_its_folder(tmp_path):
    def appear():
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").touch()

    with pytest.raises(FileExistsError, match="out exists already: it appeared while this was running"):
        write_folder_and_file(tmp_path / "out", meanwhile=appear)
    assert names(tmp_path) == {"out"}


@pytest.mark.process
def test_a_file_that_a_killed_process_published_before_its_folder_is_withdrawn(tmp_path):
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]!r}
        from test_files import write_folder_and_file
        os.rename = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
        write_folder_and_file(Path({str(tmp_path / "out")!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "grid").exists(), "it was not killed between the two"
    write_folder_and_file(tmp_path / "out")
    assert names(tmp_path) == {"grid", "out"}
    assert names(tmp_path / "out") == {"new.png"}


@pytest.mark.parametrize("what", ["a new file", "another content"])
def test_a_folder_in_which_something_changes_meanwhile_is_not_replaced(tmp_path, what):
    """With force, too: what was not looked at is not removed."""
    out = tmp_path / "out"
    write_folder(out)
    with pytest.raises(FileExistsError, match=r"out is not replaced: (mine|new\.png) in it has changed"):
        write_folder(
            out, force=True, meanwhile=lambda: (out / ("mine" if "new" in what else "new.png")).write_text("mine")
        )
    assert "mine" in {path.read_text() for path in out.iterdir()}
    assert names(tmp_path) == {"out"}
    write_folder(out, force=True)
    assert names(out) == {"new.png"}
    assert (out / "new.png").read_text() == "new"
    (tmp_path / "ordinary").mkdir()
    assert out.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_folder_that_is_to_be_replaced_is_never_lost(tmp_path, monkeypatch):
    """Neither when another one takes its place between two renamings, nor when the process is killed there."""
    out, rename = tmp_path / "out", os.rename
    write_folder(out)
    (out / "new.png").write_text("old")

    def interrupted(source, target):
        rename(source, target)
        if Path(source) == out:
            out.mkdir()
            (out / "other").touch()

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", interrupted)
        with pytest.raises(FileExistsError, match=r"appeared while this was running.* what was there before is in"):
            write_folder(out, force=True)
    assert names(out) == {"other"}
    (kept,) = names(tmp_path) - {"out"}
    assert (tmp_path / kept / "new.png").read_text() == "old"
    dead = tmp_path / ".out.unfinished-0123456789abcdef"
    dead.mkdir()
    out.rename(dead / "replaced")
    with pytest.raises(FileExistsError, match="out exists already; pass --force"):
        write_folder(out)
    assert names(out) == {"other"}
    assert names(tmp_path) == {"out", kept}


def test_an_output_belongs_to_one_process_at_a_time(tmp_path):
    with claimed(tmp_path / "a"):
        with pytest.raises(BlockingIOError, match=r"another process is writing .*a; wait for it"):
            write_both(tmp_path)
        with claimed(tmp_path / "b"):
            pass
        with whole_file(tmp_path / "a") as temporary:  # it may be replaced by anybody
            temporary.touch()
    write_both(tmp_path, force=True)
    assert names(tmp_path) == {"a", "b"}


def test_without_locks_nothing_of_another_process_is_removed(tmp_path, monkeypatch):
    """Where nobody can tell the living from the dead; outputs are written all the same, and none is replaced."""
    monkeypatch.setattr(locks, "_lock", lambda descriptor: False)
    other = tmp_path / ".a.unfinished-fedcba9876543210"
    other.mkdir()
    (other / "a").write_text("half")
    write_both(tmp_path)
    assert (other / "a").read_text() == "half"
    with pytest.raises(FileExistsError):
        write_both(tmp_path)
    assert names(tmp_path) == {"a", "b", other.name}


def test_leftovers_of_other_kinds_and_of_living_processes_stay(tmp_path):
    foreign = [".a.unfinished-notes", ".a-12345678", ".ab.unfinished-0123456789abcdef", ".a.lock.txt"]
    for name in foreign:
        (tmp_path / name).mkdir()
    (tmp_path / ".a.unfinished-0123456789abcdef").write_text("a file is none of them")
    dead = tmp_path / ".a.unfinished-fedcba9876543210"
    dead.mkdir()
    (dead / "a").touch()
    with whole_file(tmp_path / "a") as first:
        first.touch()
        with whole_file(tmp_path / "a") as second:
            second.touch()
            assert first.exists()
        assert not dead.exists()
    assert names(tmp_path) == {*foreign, ".a.unfinished-0123456789abcdef", "a"}


def test_long_names_can_be_written(tmp_path):
    name = "\u00e9" * 120 + ".bin"  # 244 bytes of the 255 that a name may have
    with output_files(tmp_path / name, force=False) as (temporary,):
        temporary.write_text("new")
    assert names(tmp_path) == {name}


def test_an_unwritable_folder_is_named_by_the_output(tmp_path, monkeypatch):
    """Not by a temporary file in it."""

    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", os.fspath(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a'"):
        write_both(tmp_path)
    assert names(tmp_path) == set()
