"""Files and directories that are whole or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from km_registry.files import atomic_write, move_into_place, purge_dir, purge_file


def test_an_atomic_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    atomic_write(path, b"one")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(path.parent.iterdir()) == [path]


def test_purging_counts_bytes_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "a").write_bytes(b"12345")
    (inside / "link").symlink_to(outside)
    assert purge_dir(inside) == 5 + len(str(outside))
    assert not inside.exists()
    assert purge_dir(inside) == 0
    assert (outside / "kept").read_bytes() == b"kept"


def test_a_directory_gets_its_final_name(tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "file").write_bytes(b"1")
    assert move_into_place(staged, tmp_path / "final") == tmp_path / "final"
    assert not staged.exists()
    assert (tmp_path / "final" / "file").read_bytes() == b"1"


def test_purging_a_file_counts_its_bytes_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"123")
    assert (purge_file(path), purge_file(path)) == (3, 0)


def test_two_may_purge_the_same_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "doomed"
    directory.mkdir()
    for name in ("one", "two"):
        (directory / name).write_text(name)
    real = shutil.rmtree

    def beaten(path: Path) -> None:
        monkeypatch.setattr(shutil, "rmtree", real)
        (directory / "one").unlink()
        raise FileNotFoundError(directory / "one")

    monkeypatch.setattr(shutil, "rmtree", beaten)
    assert purge_dir(directory) == 6
    assert not directory.exists()
