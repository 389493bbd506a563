"""The rules: who may do what."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from km_registry.access import ALLOWED, may, may_administer, may_manage_keys, strongest
from km_registry.types import Action, Document, Grant, Principal, Role

NOW = datetime.now(UTC)
DOCUMENT = Document("doc_1", "usr_owner", "t", "0" * 64, 1, NOW)
READING = {Action.READ, Action.ASK}


def grant(principal_id: str, role: Role, document_id: str = "doc_1") -> Grant:
    return Grant(document_id, principal_id, "", role, NOW)


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("is_admin", [False, True])
@pytest.mark.parametrize("holder", ["usr_1", "grp_1"])
def test_owners_may_everything_and_readers_read_and_ask(action: Action, is_admin: bool, holder: str) -> None:
    principal = Principal("usr_1", is_admin=is_admin)
    assert may(principal, action, DOCUMENT, [grant(holder, Role.OWNER)])
    assert may(principal, action, DOCUMENT, [grant(holder, Role.READER)]) is (action in READING)


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize(
    "grants",
    [
        [],
        [grant("usr_other", Role.OWNER)],
        [grant("usr_1", Role.OWNER, "doc_2")],
        [grant("grp_1", Role.OWNER, "doc_2")],
    ],
)
def test_nobody_else_may_anything_not_even_an_administrator(action: Action, grants: list[Grant]) -> None:
    for principal in (Principal("usr_1"), Principal("usr_1", is_admin=True)):
        assert not may(principal, action, DOCUMENT, grants)


def test_the_one_who_uploaded_it_holds_no_more_than_their_grants() -> None:
    assert not may(Principal("usr_owner"), Action.READ, DOCUMENT, [])


@pytest.mark.parametrize("action", Action)
def test_of_several_grants_the_strongest_counts(action: Action) -> None:
    grants = [grant("usr_1", Role.READER), grant("grp_1", Role.OWNER)]
    assert may(Principal("usr_1"), action, DOCUMENT, grants)
    assert may(Principal("usr_1"), action, DOCUMENT, grants[::-1])


def test_every_role_reads_and_asks() -> None:
    """Lists show whatever a principal holds any role on."""
    assert all(allowed >= READING for allowed in ALLOWED.values())
    assert set(ALLOWED) == set(Role)


def test_the_strongest_of_roles() -> None:
    assert strongest([Role.READER, Role.OWNER]) is Role.OWNER
    assert strongest([Role.READER]) is Role.READER
    assert strongest([]) is None


def test_keys_are_managed_by_their_user_and_by_administrators() -> None:
    assert may_manage_keys(Principal("usr_1"), "usr_1")
    assert not may_manage_keys(Principal("usr_1"), "usr_2")
    assert may_manage_keys(Principal("usr_1", is_admin=True), "usr_2")


def test_only_administrators_administer() -> None:
    assert may_administer(Principal("usr_1", is_admin=True))
    assert not may_administer(Principal("usr_1"))
