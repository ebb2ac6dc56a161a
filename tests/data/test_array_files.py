"""Files of arrays and tensors: only what is there is read, and nothing is unpickled."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from pxfast.data.arrays import map_array
from pxfast.data.image_files import open_collection
from pxfast.data.tensor_pickle import read_tensor

GRID = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def unpickle_me(path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(path),)

    return Bomb()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saves_is_read(tmp_path, zipped, protocol):
    """Every type, layout and pickle protocol; a slice of a larger storage, a parameter, and a tensor with a name."""
    named = GRID.clone()
    named.origin = "a camera"  # type: ignore[attr-defined]
    cases = [
        *((GRID / 255).to(dtype) for dtype in FLOATS),
        GRID,
        GRID[1:3],
        GRID[:, :, ::2, 1:],
        GRID.to(memory_format=torch.channels_last),
        GRID.transpose(2, 3),
        GRID[0],
        GRID[:0],
        torch.nn.Parameter(GRID / 255),
        named,
    ]
    for i, case in enumerate(cases):
        path = tmp_path / f"{i}.pt"
        torch.save(case, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        found = read_tensor(path)
        assert found.dtype == case.dtype
        assert found.stride() == case.stride()
        assert torch.equal(found, case)
        assert not found.requires_grad


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.zeros(1, 1, 28, 28, dtype=torch.uint8).expand(10**7, 3, 28, 28), ValueError, "expanded tensor"),
        (GRID[:1, :1].clone().expand(-1, 3, -1, -1), ValueError, r"contiguous\(\)"),
        ({"images": GRID}, TypeError, "found dict"),
        ([GRID], TypeError, "found list"),
        (7, TypeError, "found int"),
        (GRID.long(), TypeError, "LongStorage, not uint8"),
        (GRID.to(torch.complex64), TypeError, "ComplexFloatStorage, not uint8"),
        (GRID.bool(), TypeError, "BoolStorage, not uint8"),
        (GRID.float().to_sparse(), TypeError, "found a sparse tensor"),
        (torch.zeros(10**6, 3, 28, 28, device="meta"), TypeError, "found a meta tensor"),
        (torch.zeros(10**12, 0, 28, 28), ValueError, r"found shape \(1000000000000, 0, 28, 28\)"),
        (torch.zeros(28, 28), ValueError, r"found shape \(28, 28\)"),
        (torch.nn.Linear(3, 3), ValueError, "no file of a plain tensor"),
    ],
)
def test_other_tensors_are_refused(tmp_path, zipped, value, error, words):
    path = tmp_path / "bad.pt"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(error, match=rf"bad\.pt.*{words}|{words}.*bad\.pt"):
        open_collection(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_unpickled(tmp_path, zipped):
    trace, path = tmp_path / "unpickled", tmp_path / "bomb.pt"
    for value in (unpickle_me(trace), {"a": unpickle_me(trace)}, [GRID, unpickle_me(trace)]):
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises((ValueError, TypeError), match=r"bomb\.pt"):
            open_collection(path)
        path.write_bytes(pickle.dumps(value if isinstance(value, dict) else [value][0]) if zipped else b"text")
        with pytest.raises(ValueError, match=r"bomb\.pt is truncated or no file of a plain tensor"):
            open_collection(path)
    assert not trace.exists()


def test_a_zip_that_lies_is_refused(tmp_path):
    torch.save(GRID, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (data,) = (name for name in members if name.endswith("/data/0"))
    (program,) = (name for name in members if name.endswith("/data.pkl"))

    def write(compression: int = zipfile.ZIP_STORED, **changes: bytes | None) -> None:
        with zipfile.ZipFile(tmp_path / "bad.pt", "w", compression) as archive:
            for name, content in {**members, **changes}.items():
                if content is not None:
                    archive.writestr(name, content)

    write()
    assert torch.equal(read_tensor(tmp_path / "bad.pt"), GRID)
    big_steps = b"\x80\x02r\xff\xff\xff\xffK\x01."  # a memo of 2^32 entries, where pickle's own reader takes 32 GB
    for changes, words in (
        ({data: members[data][:-1]}, "should have 768"),
        ({data: members[data] + b"0"}, "769 bytes, expected 768"),
        ({data: None}, "data/0"),
        ({program: None}, "0 members data.pkl"),
        ({f"twice/{program}": members[program]}, "2 members data.pkl"),
        ({program: members[program][:-1]}, "truncated"),
        ({program: big_steps}, "truncated"),
        ({program: b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00."}, "truncated"),
        ({program: b"(" * 1000 + b"t" * 1000 + b"."}, "found tuple"),
        ({program: b"0" * (1 << 17)}, "expected 65536 at most"),
    ):
        write(**changes)
        with pytest.raises((ValueError, TypeError), match=rf"bad\.pt.*{words}"):
            read_tensor(tmp_path / "bad.pt")
    write()
    whole = (tmp_path / "bad.pt").read_bytes()
    end = whole.rindex(b"PK\5\6")  # where the zip says how large its list of members is
    (tmp_path / "bad.pt").write_bytes(whole[: end + 12] + b"\xff\xff\xff\x7f" + whole[end + 16 :])
    with pytest.raises(ValueError, match=r"bad\.pt is truncated"):
        read_tensor(tmp_path / "bad.pt")
    write(zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"bad\.pt .*is compressed"):
        read_tensor(tmp_path / "bad.pt")


def npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        GRID.numpy(),
        np.asfortranarray(GRID.numpy()),
        (GRID / 255).numpy().astype(">f8"),
        GRID.numpy()[:0],
        GRID.numpy()[1],
    ],
    ids=["uint8", "fortran", "big-endian", "none", "one"],
)
def test_arrays_are_mapped(tmp_path, array):
    (tmp_path / "a.npy").write_bytes(npy(array))
    found = map_array(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_other_arrays_are_refused(tmp_path):
    path = tmp_path / "bad.npy"
    good = npy(GRID.numpy())
    archive = io.BytesIO()
    np.savez(archive, images=GRID.numpy())

    def header(text: str) -> bytes:
        return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()

    shape = "{'descr': '|u1', 'fortran_order': False, 'shape': %s}\n"
    for data, error, words in (
        (b"", ValueError, "does not begin"),
        (b"P5 text", ValueError, "does not begin"),
        (archive.getvalue(), ValueError, "does not begin"),
        (good[:-1], ValueError, "767 bytes of numbers, and should have 768"),
        (good[:20], ValueError, "truncated"),
        (header(shape % "(1000000000, 3, 28, 28)"), ValueError, "should have 2352000000000"),
        (header(shape % "(1000000000000, 0, 28, 28)"), ValueError, "found shape"),
        (header(shape % f"({10**30}, 0, 28, 28)"), ValueError, "impossible"),
        (header(shape % "(-1, 3, 28, 28)"), ValueError, "impossible"),
        (header((shape % "(68719476736, 1, 4, 4)").replace("|u1", "|S0")), ValueError, "take no bytes"),
        (header((shape % "(68719476736, 1, 4, 4)").replace("|u1", "<U0")), ValueError, "take no bytes"),
        (header(shape % ("(" * 3000)), ValueError, "its header is damaged"),
        (header("__import__('os').mkdir('x')\n"), ValueError, "its header is damaged"),
        (npy(np.array([{}]), pickled=True), ValueError, "objects"),
        (npy(GRID.numpy().astype(np.int64)), TypeError, "found int64"),
        (npy(GRID.numpy().astype(np.complex64)), TypeError, "found complex64"),
        (npy(GRID.numpy()[0, 0]), ValueError, r"found shape \(8, 8\)"),
    ):
        path.write_bytes(data)
        with pytest.raises(error, match=rf"bad\.npy.*{words}"):
            open_collection(path)


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
@pytest.mark.parametrize(("value", "words"), [(float("nan"), "NaN"), (1.5, r"values from 0 to 1\.5")])
def test_values_off_the_unit_interval_are_named_with_their_file(tmp_path, suffix, value, words):
    images, path = torch.zeros(3, 1, 8, 8), tmp_path / f"off{suffix}"
    images[2, 0, 3, 4] = value
    if suffix == ".npy":
        np.save(path, images.numpy())
    else:
        torch.save(images, path)
    batches = open_collection(path).batches(2)
    next(batches)
    with pytest.raises(ValueError, match=rf"off{suffix}: floating-point images must be in \[0, 1\], got {words}"):
        next(batches)
