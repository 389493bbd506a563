"""What a file is, by its first bytes. Its name may say what it likes."""

from __future__ import annotations

import re
from enum import StrEnum

from server.intake.refusal import Reason, RefusedFileError


class Media(StrEnum):
    """What can be taken. Markdown is text; a ZIP may turn out to be no DOCX."""

    TEXT = "text"
    HTML = "html"
    PDF = "pdf"
    DOCX = "docx"


TAKEN = "Send a PDF, DOCX, HTML, Markdown or text file."
_PDF = b"%PDF-"
#: Readers look for its mark that far, since some writers put something before it.
_PDF_MARK_WITHIN = 1024
_HTML_WITHIN = 4096
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)[\s>]",
    re.IGNORECASE | re.DOTALL,
)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_UNPACK = "Unpack it and send what is in it."
_READ_IT = "Have OCR read it and send the text."
#: Marks of other types: what the file is, and what to do.
_OTHERS = (
    (b"{\\rtf", "an RTF file", "Save it as DOCX or PDF."),
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\xfd7zXZ\x00", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"\x89PNG\r\n\x1a\n", "a picture", _READ_IT),
    (b"\xff\xd8\xff", "a picture", _READ_IT),
    (b"GIF87a", "a picture", _READ_IT),
    (b"GIF89a", "a picture", _READ_IT),
    (b"II*\x00", "a picture", _READ_IT),
    (b"MM\x00*", "a picture", _READ_IT),
    (b"\x7fELF", "a program", "Send a document."),
)


def media_of(data: bytes) -> Media:
    """What the file is; RefusedFileError when it is of a type that is known and not taken.

    Whatever has no mark is text, and has to be proper UTF-8.
    """
    if data.startswith(_PDF) or (_PDF in data[:_PDF_MARK_WITHIN] and not _is_text(data)):
        return Media.PDF
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Media.DOCX
    if data.startswith(_OLE):
        raise _ole(data)
    for mark, what, remedy in _OTHERS:
        if data.startswith(mark):
            raise RefusedFileError(Reason.UNSUPPORTED, f"The file is {what}. {remedy} {TAKEN}")
    return Media.HTML if _HTML.match(data[:_HTML_WITHIN]) else Media.TEXT


def _ole(data: bytes) -> RefusedFileError:
    if "EncryptedPackage".encode("utf-16-le") in data:
        return RefusedFileError(
            Reason.ENCRYPTED, "The file is protected by a password. Save it without one and send it again."
        )
    return RefusedFileError(
        Reason.UNSUPPORTED, f"The file is of an old Office format. Save it as DOCX. {TAKEN}"
    )


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False
