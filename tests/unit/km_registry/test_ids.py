"""Identifiers and secrets."""

from __future__ import annotations

import hashlib
import re

from km_registry.ids import new_id, new_secret, secret_digest


def test_ids_are_a_prefix_and_100_random_bits() -> None:
    ids = {new_id("doc") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"doc_[a-z2-7]{20}", identifier) for identifier in ids)


def test_secrets_carry_256_bits() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(re.fullmatch(r"km_[A-Za-z0-9_-]{43}", secret) for secret in secrets)


def test_what_is_stored_is_the_sha256() -> None:
    assert secret_digest("km_x") == hashlib.sha256(b"km_x").hexdigest()
