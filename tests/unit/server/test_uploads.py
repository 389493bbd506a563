"""Files of every type at upload, over HTTP: taken by their content, or refused with what to do."""

from __future__ import annotations

from typing import Any

import pytest

from km_registry.registry import Registry
from tests.unit.server.conftest import Someone, error_of
from tests.unit.server.intake.files import docx, page_of_the_web, paragraph, pdf, zipped

TEXT = "The lighthouse of Kaldvik was lit in 1871."
NOTHING: tuple[list[str], list[str], int] = ([], [], 0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kaldvik.pdf", pdf([TEXT])),
        ("kaldvik.docx", docx(paragraph(TEXT))),
        ("kaldvik.html", page_of_the_web([TEXT])),
        ("kaldvik.md", TEXT.encode()),
        # What it is called does not matter.
        ("kaldvik.txt", pdf([TEXT])),
        ("kaldvik.pdf", TEXT.encode()),
        ("kaldvik", TEXT.encode()),
    ],
)
async def test_a_file_becomes_a_document(ada: Someone, registry: Registry, name: str, content: bytes) -> None:
    response = await ada.http.post("/documents", files={"file": (name, content)})
    assert response.status_code == 202, response.text
    document = response.json()["document"]
    assert document["title"] == "kaldvik"
    assert TEXT in registry.read_text(document["id"])


async def test_a_file_may_be_a_new_version(ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    response = await ada.http.put(f"/documents/{document_id}", files={"file": ("a.pdf", pdf([TEXT]))})
    assert response.status_code == 202, response.text
    assert registry.read_text(document_id) == TEXT


@pytest.mark.parametrize(
    ("content", "status", "code", "says"),
    [
        (pdf([TEXT], password="secret"), 422, "encrypted_file", "Save it without one"),
        (pdf(["", ""]), 422, "no_text", "seems to be scanned. Have OCR read it"),
        (pdf([TEXT])[:300], 422, "damaged_file", "save it anew"),
        (b"PK\x03\x04 not really", 422, "damaged_file", "save it anew"),
        (docx(paragraph(" ")), 422, "no_text", "holds no text"),
        (zipped({"xl/workbook.xml": b"x"}), 415, "unsupported_type", "an Excel workbook"),
        (b"\x89PNG\r\n\x1a\n", 415, "unsupported_type", "a picture"),
        (docx(paragraph(TEXT * 150)), 413, "too_large", "5000 bytes"),
    ],
)
async def test_what_cannot_be_taken_says_what_to_do(
    ada: Someone, stored: Any, content: bytes, status: int, code: str, says: str
) -> None:
    error = error_of(await ada.http.post("/documents", files={"file": ("a.pdf", content)}), status)
    assert error["code"] == code
    assert says in error["message"]
    assert stored(ada) == NOTHING
