"""The part of a transformers tokenizer that serving needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from km_registry.prompts import ChatTokenizer


class Tokenizer(ChatTokenizer, Protocol):
    """Text to token ids and back. Methods may be called from several threads."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str:
        """The text of token ids."""
        ...

    def __len__(self) -> int:
        """How many token ids there are; every id is below it."""
        ...
