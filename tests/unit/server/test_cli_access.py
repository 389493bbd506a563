"""Commands about sharing, users, groups, keys and the audit log: what they ask for and what they print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.server.test_cli import FakeApi, km

ADA = {"id": "usr_a", "name": "ada", "is_admin": False, "created_at": "2026-01-31T12:00:00.5Z"}
CREW = {"id": "grp_c", "name": "crew [old]", "created_at": "2026-01-31T12:00:00.5Z"}
GRANT = {"principal_id": "usr_a", "name": "ada", "role": "reader", "created_at": "2026-01-31T12:00:00.5Z"}
TO_CREW = GRANT | {"principal_id": "grp_c", "name": "crew [old]"}
KEY = {"id": "key_1", "user_id": "usr_a", "name": "laptop", "created_at": "2026-01-31T12:00:00.5Z"}
ENTRY = {"at": "2026-01-31T12:00:00.5Z", "actor_id": "usr_a", "action": "document.ask", "outcome": "done"}
GRANTS = "/documents/doc_1/grants"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    fake = FakeApi()
    monkeypatch.setenv("KM_URL", fake.url)
    monkeypatch.setenv("KM_API_KEY", "km_secret")
    fake.replies_with("GET", GRANTS, {"grants": [GRANT, TO_CREW]})
    fake.replies_with("POST", GRANTS, GRANT)
    fake.replies_with("DELETE", f"{GRANTS}/usr_a", "")
    fake.replies_with("DELETE", f"{GRANTS}/grp_c", "")
    fake.replies_with("GET", "/users", {"users": [ADA], "next_after": "ada"})
    fake.replies_with("GET", "/users?after=ada", {"users": [], "next_after": None})
    fake.replies_with("POST", "/users", {"user": ADA, "api_key": "km_new"})
    fake.replies_with("GET", "/users/me", {"user": ADA, "groups": [CREW], "key_id": "key_1"})
    fake.replies_with("GET", "/groups", {"groups": [CREW]})
    fake.replies_with("POST", "/groups", CREW)
    fake.replies_with("DELETE", "/groups/grp_c", "")
    fake.replies_with("GET", "/groups/grp_c/members", {"members": [ADA]})
    fake.replies_with("POST", "/groups/grp_c/members", ADA)
    fake.replies_with("DELETE", "/groups/grp_c/members/usr_a", "")
    fake.replies_with("GET", "/keys", {"keys": [KEY]})
    fake.replies_with("GET", "/keys?user=ada", {"keys": [KEY]})
    fake.replies_with("POST", "/keys", {"key": KEY, "api_key": "km_new"})
    fake.replies_with("DELETE", "/keys/key_1", KEY)
    fake.replies_with("GET", "/audit?limit=50", {"entries": [ENTRY], "next_before": None})
    fake.replies_with("GET", "/audit?target=doc_1&limit=3", {"entries": [ENTRY], "next_before": None})
    yield fake
    fake.close()


@pytest.mark.parametrize(
    ("command", "request_", "prints"),
    [
        (
            "share doc_1",
            ("GET", GRANTS, None),
            ["usr_a", "crew [old]", "reader", "2026-01-31 12:00"],
        ),
        ("share doc_1 ada", ("POST", GRANTS, {"user": "ada", "role": "reader"}), ["ada", "reader"]),
        ("share doc_1 ada --role owner", ("POST", GRANTS, {"user": "ada", "role": "owner"}), []),
        ("share doc_1 crew --group", ("POST", GRANTS, {"group": "crew", "role": "reader"}), []),
        ("share doc_1 grp_c", ("POST", GRANTS, {"group": "grp_c", "role": "reader"}), []),
        ("unshare doc_1 ada", ("DELETE", f"{GRANTS}/usr_a", None), []),
        ("unshare doc_1 grp_c", ("DELETE", f"{GRANTS}/grp_c", None), []),
        ("whoami", ("GET", "/users/me", None), ["usr_a", "ada", "grp_c"]),
        ("users", ("GET", "/users?after=ada", None), ["usr_a", "ada", "no"]),
        ("users add ada", ("POST", "/users", {"name": "ada", "is_admin": False}), ["usr_a", "km_new"]),
        ("users add ada --admin", ("POST", "/users", {"name": "ada", "is_admin": True}), []),
        ("groups", ("GET", "/groups", None), ["grp_c", "crew [old]"]),
        ("groups add crew", ("POST", "/groups", {"name": "crew"}), ["grp_c"]),
        ("groups rm grp_c", ("DELETE", "/groups/grp_c", None), []),
        ("groups members grp_c", ("GET", "/groups/grp_c/members", None), ["ada"]),
        ("groups join grp_c ada", ("POST", "/groups/grp_c/members", {"user": "ada"}), []),
        ("groups leave grp_c ada", ("DELETE", "/groups/grp_c/members/usr_a", None), []),
        ("keys", ("GET", "/keys", None), ["key_1", "laptop", "usr_a"]),
        ("keys --user ada", ("GET", "/keys?user=ada", None), ["key_1"]),
        (
            "keys add laptop",
            ("POST", "/keys", {"name": "laptop"}),
            ["key_1", "km_new"],
        ),
        ("keys revoke key_1", ("DELETE", "/keys/key_1", None), []),
        ("audit", ("GET", "/audit?limit=50", None), ["usr_a", "document.ask", "done"]),
        ("audit --target doc_1 --limit 3", ("GET", "/audit?target=doc_1&limit=3", None), []),
    ],
)
def test_a_command_asks_and_prints(
    api: FakeApi, command: str, request_: tuple[str, str, Any], prints: list[str]
) -> None:
    done = km(*command.split())
    assert done.exit_code == 0, done.output
    assert api.requests[-1][:3] == request_
    for word in prints:
        assert word in done.output


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("share doc_1", [GRANT, TO_CREW]),
        ("share doc_1 ada", GRANT),
        ("whoami", {"user": ADA, "groups": [CREW], "key_id": "key_1"}),
        ("users", [ADA]),
        ("users add ada", {"user": ADA, "api_key": "km_new"}),
        ("groups", [CREW]),
        ("groups add crew", CREW),
        ("groups members grp_c", [ADA]),
        ("keys", [KEY]),
        ("keys add laptop", {"key": KEY, "api_key": "km_new"}),
        ("audit", [ENTRY]),
        ("unshare doc_1 ada", {"document_id": "doc_1", "principal_id": "usr_a"}),
        ("groups rm grp_c", {"group_id": "grp_c"}),
        ("groups leave grp_c ada", {"group_id": "grp_c", "user_id": "usr_a"}),
        ("keys revoke key_1", KEY),
    ],
)
def test_json_for_programs(api: FakeApi, command: str, printed: Any) -> None:
    assert json.loads(km(*command.split(), "--json").output) == printed


def test_a_key_may_be_given_days_to_live(api: FakeApi) -> None:
    assert km("keys", "add", "laptop", "--days", "1").exit_code == 0
    assert api.requests[-1][2]["expires_at"].endswith("+00:00")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("unshare doc_1 eve", "not shared with the user eve"),
        ("unshare doc_1 ada --group", "not shared with the group ada"),
        ("groups rm eve", "no group eve"),
        ("groups leave grp_c eve", "eve is not in grp_c"),
    ],
)
def test_what_is_not_there_is_said(api: FakeApi, command: str, says: str) -> None:
    done = km(*command.split())
    assert done.exit_code == 1
    assert says in done.output
    assert {method for method, *_ in api.requests} == {"GET"}


def test_a_refusal_is_told(api: FakeApi) -> None:
    refusal = {"error": {"message": "name: there is a user ada already.", "type": "conflict_error"}}
    api.replies_with("POST", "/users", refusal, 409)
    done = km("users", "add", "ada")
    assert done.exit_code == 1
    assert "there is a user ada already" in done.output
