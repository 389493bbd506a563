"""A directory that ends with its process, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from km_registry.process_directory import ProcessDirectory

HOLD = """
import sys
from pathlib import Path
from km_registry.process_directory import ProcessDirectory
directory = ProcessDirectory(Path(sys.argv[1]), "other")
(directory.path / "copy").write_text("secret")
print("there", flush=True)
sys.stdin.read()
"""


def test_it_is_gone_once_it_is_closed(tmp_path: Path) -> None:
    directory = ProcessDirectory(tmp_path / "all", "mine")
    (directory.path / "below").mkdir()
    assert directory.path.stat().st_mode & 0o777 == 0o700
    for _ in range(2):
        directory.close()
        assert list((tmp_path / "all").iterdir()) == []


def test_two_have_no_name_in_common(tmp_path: Path) -> None:
    first = ProcessDirectory(tmp_path, "mine")
    with pytest.raises(FileExistsError):
        ProcessDirectory(tmp_path, "mine")
    first.close()


def test_what_a_killed_process_left_the_next_one_removes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        first = ProcessDirectory(tmp_path, "first")
        assert (tmp_path / "other" / "copy").is_file()
        other.send_signal(signal.SIGKILL)
    assert (tmp_path / "other" / "copy").is_file()
    second = ProcessDirectory(tmp_path, "second")
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}
    first.close()
    second.close()
