"""The data directory for one server alone, and the port."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from server.startup import ServeError, data_directory, listen, url_of


class TestDataDirectory:
    def test_is_made_for_this_user_alone(self, tmp_path: Path) -> None:
        with data_directory(tmp_path / "a" / "data") as made:
            assert made == tmp_path / "a" / "data"
            assert stat.S_IMODE(made.stat().st_mode) == 0o700

    def test_belongs_to_one_server_at_a_time(self, tmp_path: Path) -> None:
        with (
            data_directory(tmp_path),
            pytest.raises(ServeError, match=rf"in use by another KM Server \(process {os.getpid()}\)"),
            data_directory(tmp_path),
        ):
            pass
        with data_directory(tmp_path):
            pass

    def test_not_writable(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with (
            pytest.raises(ServeError, match=r"not writable \(Not a directory\).*--data-dir"),
            data_directory(tmp_path / "file" / "below"),
        ):
            pass


class TestListen:
    def test_a_free_port(self) -> None:
        with listen("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
            assert url_of(listener) == f"http://127.0.0.1:{port}"
            socket.create_connection(("127.0.0.1", port)).close()

    def test_every_interface_is_reached_locally(self) -> None:
        with listen("0.0.0.0", 0) as listener:
            assert url_of(listener).startswith("http://127.0.0.1:")

    def test_a_connection_sends_at_once_what_it_is_given(self) -> None:
        with (
            listen("127.0.0.1", 0) as listener,
            socket.create_connection(listener.getsockname()),
            listener.accept()[0] as accepted,
        ):
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_taken(self) -> None:
        with listen("127.0.0.1", 0) as first:
            port = first.getsockname()[1]
            with pytest.raises(ServeError, match=f"Port {port} on 127.0.0.1 is taken.*--port"):
                listen("127.0.0.1", port)

    @pytest.mark.parametrize(
        ("host", "problem"), [("192.0.2.1", "not an address of this machine"), ("no such host", "not known")]
    )
    def test_no_address_of_ours(self, host: str, problem: str) -> None:
        with pytest.raises(ServeError, match=f"{problem}.*--host"):
            listen(host, 0)
