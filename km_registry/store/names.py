"""Names of users, groups and keys: one look, so that two that look the same are the same."""

from __future__ import annotations

import unicodedata

from km_registry.errors import InvalidValueError

MAX_NAME_CHARS = 200
_LIKE_AN_ID = ("usr_", "grp_", "key_")


def checked_name(name: str) -> str:
    """The name as it is kept; InvalidValueError says what to change."""
    name = unicodedata.normalize("NFKC", " ".join(name.split()))
    if not name:
        raise InvalidValueError("name: it is empty. Give a name.", param="name")
    if len(name) > MAX_NAME_CHARS:
        raise InvalidValueError(
            f"name: it has {len(name)} characters. Shorten it to {MAX_NAME_CHARS}.", param="name"
        )
    # Control, format and unassigned characters and surrogates: invisible, and some turn the text around.
    if any(unicodedata.category(character).startswith("C") for character in name):
        raise InvalidValueError("name: it holds characters that cannot be seen. Remove them.", param="name")
    if name.startswith(_LIKE_AN_ID):
        raise InvalidValueError("name: it looks like an id. Choose another.", param="name")
    return name
