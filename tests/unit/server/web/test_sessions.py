"""Session cookies: signed, ending, and with a token of their own."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from server.web.sessions import LIFETIME_S, Sessions, session_secret

SESSIONS = Sessions(b"s" * 32)
NOW = 1_800_000_000.0


def test_a_session_names_its_key() -> None:
    value = SESSIONS.begin("key_a", now=NOW)
    assert SESSIONS.key_id(value, now=NOW + 1) == "key_a"


def test_a_session_ends_by_itself() -> None:
    value = SESSIONS.begin("key_a", now=NOW)
    assert SESSIONS.key_id(value, now=NOW + LIFETIME_S - 1) == "key_a"
    assert SESSIONS.key_id(value, now=NOW + LIFETIME_S) is None


def test_another_servers_clock_may_be_a_little_ahead() -> None:
    value = SESSIONS.begin("key_a", now=NOW)
    assert SESSIONS.key_id(value, now=NOW - 60) == "key_a"
    assert SESSIONS.key_id(value, now=NOW - 3600) is None


def test_two_sessions_by_one_key_differ() -> None:
    assert SESSIONS.begin("key_a", now=NOW) != SESSIONS.begin("key_a", now=NOW)


@pytest.mark.parametrize("forged", ["", "key_a", "...", "key_b.1.x.y", "\udcff.1.2.3", "key_é.1.2.3"])
def test_what_is_not_signed_names_nothing(forged: str) -> None:
    assert SESSIONS.key_id(forged, now=NOW) is None


def test_another_key_cannot_be_put_in() -> None:
    value = SESSIONS.begin("key_a", now=NOW)
    assert SESSIONS.key_id(value.replace("key_a", "key_b"), now=NOW) is None
    assert Sessions(b"t" * 32).key_id(value, now=NOW) is None


def test_a_token_belongs_to_one_session() -> None:
    ours, theirs = (SESSIONS.begin(key, now=NOW) for key in ("key_a", "key_b"))
    assert SESSIONS.is_token(ours, SESSIONS.token(ours))
    assert not SESSIONS.is_token(ours, SESSIONS.token(theirs))
    assert not SESSIONS.is_token(ours, "é\udcff")
    # What signs the cookie is no token, and the other way round.
    assert not SESSIONS.is_token(ours.rpartition(".")[0], ours.rpartition(".")[2])


def test_the_secret_outlives_the_server_and_is_its_users_alone(tmp_path: Path) -> None:
    first = session_secret(tmp_path, None)
    assert len(first) == 32
    assert session_secret(tmp_path, None) == first
    assert [path.name for path in tmp_path.iterdir()] == ["session.key"]
    assert stat.S_IMODE((tmp_path / "session.key").stat().st_mode) == 0o600


def test_the_operators_secret_is_not_written_down(tmp_path: Path) -> None:
    assert session_secret(tmp_path, "a secret of the operator's") == b"a secret of the operator's"
    assert list(tmp_path.iterdir()) == []
