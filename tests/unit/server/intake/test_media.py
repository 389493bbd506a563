"""What a file is, by its content."""

from __future__ import annotations

import pytest

from server.intake.media import Media, media_of
from server.intake.refusal import Reason, RefusedFileError


@pytest.mark.parametrize(
    ("data", "media"),
    [
        (b"The lighthouse was lit in 1871.", Media.TEXT),
        (b"# The lighthouse\n\n<b>lit</b> in 1871", Media.TEXT),
        ("Größe\n".encode(), Media.TEXT),
        (b"", Media.TEXT),
        (b"A PDF begins with %PDF-1.7, as is known.", Media.TEXT),
        (b"<p>A paragraph, as Markdown may have it.", Media.TEXT),
        (b"<headless> is no element", Media.TEXT),
        (b"%PDF-1.7 rest", Media.PDF),
        (b"\x00\x01 printer's noise \xff %PDF-1.4", Media.PDF),
        (b"PK\x03\x04rest", Media.DOCX),
        (b"<!DOCTYPE html><title>", Media.HTML),
        (b"\xef\xbb\xbf\n <!-- saved --> <HTML lang=en>", Media.HTML),
        (b'<?xml version="1.0"?>\n<!doctype HTML public>', Media.HTML),
    ],
)
def test_it_is_told_by_the_content(data: bytes, media: Media) -> None:
    assert media_of(data) is media


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"\x1f\x8b\x08", Reason.UNSUPPORTED, "gzip. Unpack it"),
        (b"\x89PNG\r\n\x1a\n....", Reason.UNSUPPORTED, "a picture. Have OCR read it"),
        (b"{\\rtf1\\ansi", Reason.UNSUPPORTED, "RTF file. Save it as DOCX or PDF"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 old", Reason.UNSUPPORTED, "old Office format"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
            Reason.ENCRYPTED,
            "protected by a password",
        ),
    ],
)
def test_other_types_are_named(data: bytes, reason: Reason, said: str) -> None:
    with pytest.raises(RefusedFileError, match=said) as refused:
        media_of(data)
    assert refused.value.reason is reason
