"""Where composites lie, and how they are removed."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from km_registry.composites import (
    ALONE,
    all_composites,
    composite_dir,
    forget_ke,
    forget_kms,
    remove,
    remove_unfinished,
)
from km_registry.types import KE, KM

NOW = datetime.now(UTC)
E = KE("ke_1", "answers", 1, "e" * 64, "/kes/ke_1", "test", "f" * 64, 4, "chat-v1", "km+ke", False, NOW)
M = KM("km_1", 1, "doc_1", "job_1", 1, "a" * 64, "/kms/km_1", "f" * 64, NOW)


def made(path: Path, *, used: float = 0.0) -> Path:
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"12345")
    os.utime(path, (used, used))
    return path


def test_a_pair_has_a_place_of_its_own(tmp_path: Path) -> None:
    # Two users' KMs of the same text may be equal byte by byte; what is made of them is not shared.
    twin = replace(M, id="km_2")
    paths = [composite_dir(tmp_path, E, km) for km in (M, twin, None)]
    paths.append(composite_dir(tmp_path, replace(E, id="ke_2"), M))
    assert len(set(paths)) == 4
    assert paths[0].parent == tmp_path / "km_1"
    assert paths[0].name.startswith("ke_1.kc_")
    assert paths[2].parent == tmp_path / ALONE


def test_all_are_found_the_one_used_longest_ago_first(tmp_path: Path) -> None:
    later = made(composite_dir(tmp_path, E, M), used=200)
    first = made(composite_dir(tmp_path, E, None), used=100)
    made(tmp_path / "km_1" / ".unfinished")
    assert all_composites(tmp_path) == [first, later]
    assert all_composites(tmp_path / "none yet") == []


def test_what_was_cut_short_is_removed(tmp_path: Path) -> None:
    kept = made(composite_dir(tmp_path, E, M))
    cut = made(tmp_path / "km_1" / ".unfinished")
    remove_unfinished(tmp_path)
    assert (kept.exists(), cut.exists()) == (True, False)


def test_a_km_takes_all_of_its_own_with_it(tmp_path: Path) -> None:
    made(composite_dir(tmp_path, E, M))
    made(tmp_path / "km_1" / ".unfinished")
    other = made(composite_dir(tmp_path, E, replace(M, id="km_2")))
    assert forget_kms(tmp_path, {"km_1", "km_none"}) == (1, 10)
    assert not (tmp_path / "km_1").exists()
    assert other.exists()


def test_a_ke_takes_all_of_its_own_with_it(tmp_path: Path) -> None:
    made(composite_dir(tmp_path, E, M))
    made(composite_dir(tmp_path, E, None))
    other = made(composite_dir(tmp_path, replace(E, id="ke_2"), M))
    assert forget_ke(tmp_path, "ke_1") == (2, 10)
    assert all_composites(tmp_path) == [other]
    assert forget_ke(tmp_path, "ke_1") == (0, 0)


def test_one_is_removed_with_the_directory_that_it_leaves_empty(tmp_path: Path) -> None:
    path = made(composite_dir(tmp_path, E, M))
    assert (remove(path), remove(path)) == (5, 0)
    assert list(tmp_path.iterdir()) == []
