"""Why a file has no text for us. Imported by the child that parses, so nothing heavy is imported here."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Kinds of refusal; each is an error of the HTTP side."""

    UNSUPPORTED = "unsupported"
    ENCRYPTED = "encrypted"
    NO_TEXT = "no_text"
    DAMAGED = "damaged"
    TOO_LARGE = "too_large"
    TOO_COMPLEX = "too_complex"


class RefusedFileError(Exception):
    """The file cannot be taken; the message says why and what to do. It quotes nothing of the file."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
