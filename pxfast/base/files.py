"""Files are written whole or not at all, and never over an existing one unasked.

What is not finished lies in a folder of its own (:mod:`pxfast.base.unfinished`). A process that works long on an output
claims it: it holds a lock of ``.NAME.lock`` beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from .locks import Lock
from .unfinished import REPLACED, remove_leftovers, short_name, speaking_of, unfinished, workplace

AnyPath: TypeAlias = str | os.PathLike[str]

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL)


def refuse_existing(path: AnyPath, *, force: bool) -> None:
    """Raise FileExistsError when ``path`` exists and ``force`` is off."""
    if not force and os.path.lexists(path):
        raise FileExistsError(f"{os.fspath(path)} exists already; pass --force (force=True) to replace it")


def refuse_folder(path: AnyPath) -> None:
    """Raise IsADirectoryError when ``path``, where a file is to be written, is a folder."""
    if os.path.isdir(path) and not os.path.islink(path):
        raise IsADirectoryError(f"{os.fspath(path)} is a folder, expected the path of a file to write")


def check_encodable(path: AnyPath) -> None:
    """ValueError when a path is no text in UTF-8, which safetensors asks of the paths of what it reads."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{os.fspath(path)}: this output must have a path in UTF-8") from None


def check_outputs(*paths: AnyPath, folder: AnyPath | None = None, force: bool) -> None:
    """Raise what :func:`output_files` raises for these paths, before any work, which claims them again.

    folder: an output folder that appears together with them, of :func:`output_folder`. Nothing is written. What killed
    processes left of all these is put in order, as it would be then.
    """
    with contextlib.ExitStack() as stack:
        _in_order(stack, [Path(path) for path in paths], None if folder is None else Path(folder), force=force)


def check_output_folder(path: AnyPath) -> None:
    """Raise NotADirectoryError or PermissionError where there can't be a folder of outputs; none is made yet."""
    target = Path(path).absolute()
    for place in (target, *target.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                raise NotADirectoryError(f"{place} is not a folder, expected one for outputs, or none yet")
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(f"no file can be written in {place}: permission denied")
            return


@contextlib.contextmanager
def claimed(path: AnyPath) -> Iterator[None]:
    """Be the only process that writes ``path``: it exists or not, and is a file or a folder.

    Raises BlockingIOError where another process does, FileNotFoundError where its folder does not exist.
    """
    target = Path(path)
    folder = target.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    try:
        with speaking_of(target, folder):
            lock = Lock(folder / f".{short_name(target.name)}.lock")
    except BlockingIOError:
        raise BlockingIOError(f"another process is writing {target}; wait for it, or write elsewhere") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def whole_file(path: AnyPath) -> Iterator[Path]:
    """Give a temporary path of the same name; on success it is flushed to disk and takes the place of ``path``.

    For files that a process may replace unasked, such as those of a store. A reader sees the old file or the new one,
    never a part of it, even after a power cut or kill -9; on failure nothing is left. A full disk is an OSError that
    names ``path``.
    """
    target = Path(path)
    with workplace(target) as (folder, lock), speaking_of(target, folder):
        temporary = folder / target.name
        yield temporary
        _settle(temporary, lock)
        os.replace(temporary, target)


@contextlib.contextmanager
def output_files(*paths: AnyPath, force: bool) -> Iterator[list[Path]]:
    """Give a temporary path for each of ``paths``; on success all of them appear, as good as at once.

    A temporary path that is not written to is left out. What appeared at one of ``paths`` meanwhile is not replaced,
    unless ``force``; then none of them appears. What a process that was killed between two of them has published is
    withdrawn by the next one. Raises FileExistsError, IsADirectoryError, BlockingIOError where another process is
    writing one of them, FileNotFoundError for a folder that is not there, ValueError where two paths are one.
    """
    with contextlib.ExitStack() as stack:
        files = [Path(path) for path in paths]
        _in_order(stack, files, None, force=force)
        pending = _prepared(stack, files)
        yield [each.temporary for each in pending]
        with _published(pending, force=force):
            pass


class OwnFile:
    """A file that a run writes again and again, but never over what it did not write itself.

    path: of the file. force: whether it may replace what is there. own: whether what is there is of this run's earlier
    part.
    """

    def __init__(self, path: AnyPath, *, force: bool, own: bool) -> None:
        self.path: Path = Path(path)
        self.force = force
        self._state: tuple[int, ...] | None = file_state(self.path) if own else None

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        """As :func:`whole_file`. FileExistsError when another file is in its place by then."""
        with workplace(self.path) as (folder, lock), speaking_of(self.path, folder):
            temporary = folder / self.path.name
            yield temporary
            _settle(temporary, lock)
            ours = self._state is not None and self._state == file_state(self.path)
            _publish(temporary, self.path, force=self.force or ours)
            self._state = file_state(self.path)


@contextlib.contextmanager
def output_folder(
    path: AnyPath, *files: AnyPath, force: bool, check: Callable[[Path], None]
) -> Iterator[tuple[Path, list[Path]]]:
    """Give a temporary folder, and a temporary path for each of ``files``, which appear together with it.

    On success the folder is flushed to disk and becomes ``path``, on failure it is removed. What appeared at ``path``
    meanwhile is not replaced. With ``force`` a folder is, if ``check`` does not raise and nothing in it changes
    meanwhile. The files are as :func:`output_files` has them. Raises what that raises, and ValueError for a file in
    ``path``.
    """
    target = Path(path)
    with contextlib.ExitStack() as stack:
        others = [Path(each) for each in files]
        _in_order(stack, others, target, force=force)
        before: set[tuple[object, ...]] | None = None
        if os.path.lexists(target):
            check(target)
            before = _content(target)
        pending = _prepared(stack, others)
        place, _ = stack.enter_context(workplace(target))
        stack.enter_context(speaking_of(target, place))
        folder = place / target.name
        folder.mkdir()
        yield folder, [each.temporary for each in pending]
        for file in folder.iterdir():
            _flush_file(file)
        _flush_folder(folder)
        with _published(pending, force=force):
            if before is not None and os.path.lexists(target):
                _exchange(target, folder, place / REPLACED, before)
            else:
                _rename_folder(folder, target)
        _flush_folder(target.absolute().parent)


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder for outputs, with those above it; what this made is removed on failure, where nothing is in it."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for each in missing:
                each.rmdir()
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; from the first moment on it is not there any more."""
    with workplace(folder) as (place, _), contextlib.suppress(FileNotFoundError):
        os.rename(folder, place / folder.name)


def write_content(path: Path, content: bytes | memoryview) -> None:
    """Write a file at once. The error of a full disk names it; the system's own names nothing."""
    try:
        path.write_bytes(content)
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def file_digest(path: AnyPath) -> str:
    """SHA-256, in hexadecimal, of a file's bytes."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A file in the making: where it is written, where it is to appear, and the lock of the place of its making."""

    temporary: Path
    target: Path
    lock: Lock


def _in_order(stack: contextlib.ExitStack, files: Sequence[Path], folder: Path | None, *, force: bool) -> None:
    """Claim outputs that appear together, remove what killed processes left of them, and refuse those that exist."""
    targets = [*files, *([] if folder is None else [folder])]
    check_apart(files, folder)
    for target in sorted(targets):
        stack.enter_context(claimed(target))
    _withdraw_unfinished(files, folder)
    for target in targets:
        remove_leftovers(target)
    for target in files:
        refuse_folder(target)
    for target in targets:
        refuse_existing(target, force=force)


def check_apart(files: Sequence[Path], folder: Path | None = None) -> None:
    """ValueError where two outputs have one path, or a file would lie in the output folder: they can't both appear."""
    seen: dict[str, Path] = {} if folder is None else {place_of(folder): folder}
    for file in files:
        if (other := seen.setdefault(place_of(file), file)) is not file:
            raise ValueError(f"expected a path of its own for each output, got {other} and {file}")
        if folder is not None and Path(place_of(folder)) in Path(place_of(file)).parents:
            raise ValueError(f"{file} lies in {folder}, which is an output of its own; write it elsewhere")


def place_of(path: Path) -> str:
    """Where an output is to appear, whatever way leads there; a link at that place is replaced, not followed."""
    return os.path.join(os.path.realpath(path.absolute().parent), path.name)


def _prepared(stack: contextlib.ExitStack, files: Sequence[Path]) -> list[_Pending]:
    """Places in which claimed files are made."""
    places = [stack.enter_context(workplace(target)) for target in files]
    pending = [
        _Pending(folder / target.name, target, lock) for (folder, lock), target in zip(places, files, strict=True)
    ]
    for each in pending:
        stack.enter_context(speaking_of(each.target, each.temporary.parent, only=each.temporary))
    return pending


@contextlib.contextmanager
def _published(pending: Sequence[_Pending], *, force: bool) -> Iterator[None]:
    """Let the files appear that have been written, and withdraw them where the block raises."""
    written = [each for each in pending if each.temporary.exists()]
    for each in written:
        _settle(each.temporary, each.lock)
    try:
        for each in written:
            _publish(each.temporary, each.target, force=force)
        yield
    except BaseException:
        _withdraw([(each.temporary, each.target) for each in written])
        raise
    for folder in {each.target.absolute().parent for each in pending}:
        _flush_folder(folder)


def _settle(temporary: Path, lock: Lock) -> None:
    """Bring a file to the disk, with the permissions of any other file: some libraries' files are private."""
    _flush_file(temporary)
    temporary.chmod(lock.mode)


def _flush_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Bring a folder's names to the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _publish(temporary: Path, target: Path, *, force: bool) -> None:
    """Let a file appear at ``target``. FileExistsError when there is something already, unless ``force``."""
    if force:
        os.replace(temporary, target)
        return
    try:
        try:
            os.link(temporary, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # fails where there is something
            try:
                os.replace(temporary, target)
            except BaseException:
                target.unlink()
                raise
    except FileExistsError:
        raise _appeared(target) from None


def _appeared(target: Path) -> FileExistsError:
    return FileExistsError(
        f"{target} exists already: it appeared while this was running, and is not replaced without --force (force=True)"
    )


def _withdraw(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Remove those targets that are the same files as their temporary ones."""
    for temporary, target in pairs:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(temporary), os.lstat(target)):
                target.unlink()


def _withdraw_unfinished(files: Sequence[Path], folder: Path | None) -> None:
    """Remove what a killed process has published of outputs that appear together, if there is one that it has not."""
    left = [(file, target) for target in files for place in unfinished(target) if (file := place / target.name)]
    left = [(file, target) for file, target in left if file.is_file()]
    waiting = folder is not None and any((place / folder.name).is_dir() for place in unfinished(folder))
    if waiting or any(not (target.exists() and os.path.samefile(file, target)) for file, target in left):
        _withdraw(left)


def _rename_folder(folder: Path, target: Path) -> None:
    """Let a folder with files in it appear at ``target``, which does not exist or is an empty folder."""
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise _appeared(target) from None
        raise


def _exchange(target: Path, folder: Path, aside: Path, before: set[tuple[object, ...]]) -> None:
    """Put ``folder`` in the place of ``target``, which goes ``aside``, if that still holds what it held before."""
    os.rename(target, aside)
    try:
        if different := _content(aside) ^ before:
            names = sorted({str(name) for name, *_ in different})
            raise FileExistsError(f"{target} is not replaced: {names[0]} in it has changed while this was running")
        _rename_folder(folder, target)
    except BaseException as error:
        if not os.path.lexists(target):
            os.rename(aside, target)
            raise
        kept = target.with_name(f"{target.name}.{secrets.token_hex(4)}")  # never removed with the unfinished work
        os.rename(aside, kept)
        raise FileExistsError(f"{error}; what was there before is in {kept}") from None


def _content(folder: Path) -> set[tuple[object, ...]]:
    """The names in a folder, and what tells that a file is still the same one."""
    return {(file.name, *(file_state(file) or ())) for file in folder.iterdir()}


def file_state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; None where there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
