"""The one rule."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from km_registry.access import may
from km_registry.types import Action, Document, Principal

DOCUMENT = Document("doc_1", "usr_owner", "t", "0" * 64, 1, datetime.now(UTC))


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize(
    ("principal", "allowed"),
    [
        (Principal("usr_owner"), True),
        (Principal("usr_owner", is_admin=True), True),
        (Principal("usr_other"), False),
        (Principal("usr_other", is_admin=True), False),
        (Principal(""), False),
    ],
)
def test_only_the_owner_may(principal: Principal, action: Action, allowed: bool) -> None:
    assert may(principal, action, DOCUMENT) is allowed
