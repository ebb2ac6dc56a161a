"""Files that can't be read are named as people write their paths."""

import pytest

from pxfast.base import reading


def test_a_file_that_can_not_be_opened_is_named_by_its_path(tmp_path, monkeypatch):
    """As one that this user may not read, or that is removed at the last moment."""
    monkeypatch.setattr(reading, "regular_file", lambda path: path)
    with pytest.raises(FileNotFoundError) as raised:
        reading.BoundedFile(tmp_path / "gone.png")
    assert str(raised.value).endswith(f"'{tmp_path / 'gone.png'}'")
    assert "PosixPath" not in str(raised.value)
