"""A row of results for each image: printed, or written to a file by a run that goes on after it was killed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from ..base.parts import Parts
    from ..data.image_files import Collection
    from ..data.images import Images

SUFFIXES = (".tsv", ".json")
PART_SECONDS = 5.0  # of work that a kill may cost
Row = list[Any]


class Batches(Protocol):
    """Images by name, in batches (N, C, H, W)."""

    @property
    def names(self) -> Sequence[str]: ...

    def batches(self, size: int) -> Iterator[Images]: ...


class Rows:
    """The rows in the making. temporary: where they are to be written; parts: what keeps them until then; or None.

    beside: where the outputs beside that file are to be written, before :meth:`write`.
    """

    def __init__(self, temporary: Path | None = None, parts: Parts | None = None, beside: Sequence[Path] = ()) -> None:
        self.temporary = temporary
        self.parts = parts
        self.beside = beside

    def of(
        self,
        collections: Sequence[Batches],
        measure: Callable[[Tensor], list[Row]],
        *,
        batch_size: int,
        progress: bool,
    ) -> list[Row]:
        """The rows of all images, in batches of uint8 (N, C, H, W) on the CPU; of those kept, no batch is measured."""
        from ..base.progress import progress_of
        from ..data.images import to_grid

        found = self._kept()
        known, saved, saved_at = len(found), len(found), time.monotonic()
        batches = itertools.chain.from_iterable(collection.batches(batch_size) for collection in collections)
        count = sum(len(collection.names) for collection in collections)
        done = 0
        with progress_of(count, shown=progress, leave=False, done=known) as shown:
            for batch in batches:
                done += len(batch)
                if done <= known:
                    continue
                grid, _ = to_grid(batch)
                found += measure(grid)
                shown.reach(done)
                if self.parts is not None and (time.monotonic() - saved_at >= PART_SECONDS or done == count):
                    self._keep(found[saved:], saved)
                    saved, saved_at = len(found), time.monotonic()
        return found

    def write(self, lines: Sequence[str], document: Any) -> None:
        """Write the lines, or the document as JSON, by the file's suffix."""
        if self.temporary is None or self.parts is None:
            return
        if self.temporary.suffix.lower() == ".json":
            text = json.dumps(document, indent=1) + "\n"
        else:
            text = "".join(f"{line}\n" for line in lines)
        self.temporary.write_bytes(text.encode(errors="surrogateescape"))
        self.parts.promise([self.temporary, *self.beside])

    def _kept(self) -> list[Row]:
        """The rows that an earlier run has left. ValueError names the file when it holds something else."""
        from ..base.reading import parse_json, read_text

        rows: list[Row] = []
        for path in sorted(self.parts.folder.glob("*.rows")) if self.parts is not None else ():
            if path.stem == f"{len(rows):012d}":
                kept = parse_json(read_text(path), str(path))
                if not isinstance(kept, list) or not all(_is_row(row, kept[0]) for row in kept):
                    raise ValueError(f"{path} holds no rows that pxfast left: remove {path.parent}")
                rows += kept
        return rows

    def _keep(self, rows: list[Row], first: int) -> None:
        from ..base.files import whole_file

        assert self.parts is not None
        with whole_file(self.parts.folder / f"{first:012d}.rows") as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")


def in_line(name: str) -> str:
    """An image's name in a line: a backslash, tab, newline or carriage return as two characters, as in C."""
    for letter, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        name = name.replace(letter, escaped)
    return name


def _is_row(row: Any, like: Any) -> bool:
    """Whether it is a list of numbers and flags, as many as the other has."""
    return isinstance(row, list) and len(row) == len(like) and all(isinstance(each, (int, float)) for each in row)


def check_rows_output(out: Path | None, *beside: Path, force: bool) -> None:
    """Raise what :func:`rows_to` is sure to raise for this output and those ``beside`` it: before any work.

    An output that exists is left for later where there are parts of a run that may have published it.
    """
    from ..base.files import check_outputs
    from ..base.parts import has_parts

    if out is None:
        return
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out}: this output must have the suffix {' or '.join(SUFFIXES)}")
    check_outputs(out, *beside, force=has_parts(out) or force)


@contextlib.contextmanager
def rows_to(
    out: Path | None, settings: Callable[[], dict[str, Any]], *, force: bool, beside: Sequence[Path] = ()
) -> Iterator[Rows]:
    """Rows that go to a .tsv or .json file ``out``, or to none. settings: of everything that they depend on.

    beside: other outputs that appear together with ``out``.

    Finished rows are kept in OUT.parts until the file is there. Raises what :func:`pxfast.base.files.output_files` and
    :meth:`pxfast.base.parts.Parts.open` raise.
    """
    if out is None:
        yield Rows()
        return
    from ..base.files import output_files
    from ..base.parts import Parts

    parts = Parts(out, settings())
    outputs = [out, *beside]
    with output_files(*outputs, force=force or parts.published(outputs)) as (temporary, *others):
        parts.open(force=force)
        try:
            yield Rows(temporary, parts, others)
        except BaseException:
            if not any(parts.folder.glob("*.rows")):  # a wrong request leaves nothing behind
                parts.remove()
            raise
    parts.remove()


def describe(
    sources: Sequence[Path], collections: Sequence[Collection], model: str | None, **settings: Any
) -> dict[str, Any]:
    """What the rows of collections depend on, JSON-able. model: a name or a file; None: by the images' shape."""
    import torch

    from ..base.version import __version__
    from ..pixelcnn.fingerprint import model_fingerprint
    from ..pixelcnn.shipped import model_for

    shapes = {tuple(next(collection.batches(1)).shape[1:]) for collection in collections if collection.names}
    return {
        "images": [content_digest(source, images) for source, images in zip(sources, collections, strict=True)],
        "models": [model_fingerprint(model_for(model, shape)) for shape in sorted(shapes)],
        "libraries": {"pxfast": __version__, "torch": torch.__version__},
        **settings,
    }


def content_digest(source: Path, collection: Collection) -> str:
    """SHA-256 of a file, or of the images in a folder and their names, in hexadecimal."""
    from ..base.files import file_digest

    if not source.is_dir():
        return file_digest(source)
    total = hashlib.sha256()
    for name in collection.names:
        total.update(name.encode(errors="surrogateescape") + b"\0" + file_digest(source / name).encode())
    return total.hexdigest()
