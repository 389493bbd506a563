"""Errors speak for themselves."""

from __future__ import annotations

import pytest

from km_registry.errors import DocumentTooLargeError, InvalidDocumentError, KMError, NotFoundError


def test_the_docstring_is_the_default_message() -> None:
    assert str(NotFoundError()) == "There is no such thing, or it is not yours."
    assert str(NotFoundError("said")) == "said"


def test_a_document_that_is_too_large_is_an_invalid_one() -> None:
    with pytest.raises(InvalidDocumentError):
        raise DocumentTooLargeError
    assert issubclass(InvalidDocumentError, KMError)
