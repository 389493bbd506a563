"""The file by which scripts learn that the server is ready."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from server import ready_file
from server.startup import ServeError


@pytest.mark.parametrize("key", [None, "km_secret"])
def test_says_where_the_server_is(key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    path.write_text("of a run that was killed")

    ready_file.prepare(path)
    assert list(tmp_path.iterdir()) == []
    ready_file.write(path, url="http://u", admin_key=key)

    expected = {"url": "http://u", "pid": os.getpid()} | ({"admin_key": key} if key else {})
    assert json.loads(path.read_text()) == expected
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"cannot be written \(No such file or directory\).*--ready-file"):
        ready_file.prepare(tmp_path / "no" / "ready.json")
