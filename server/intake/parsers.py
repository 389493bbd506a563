"""Bytes to text, one function for each type. Run in the child; whatever they raise but a RefusedFileError
means that the file is damaged."""

from __future__ import annotations

import io
import re
import unicodedata
import zipfile
from collections.abc import Callable

from server.intake.limits import IntakeLimits
from server.intake.media import TAKEN, Media
from server.intake.refusal import Reason, RefusedFileError

_MAX_ENTRIES = 10_000
_WORD_DOCUMENT = "word/document.xml"
#: Other things that come as a ZIP, by what lies in it.
_OTHER_ZIPS = (
    ("xl/", "an Excel workbook"),
    ("ppt/", "a PowerPoint presentation"),
    ("META-INF/container.xml", "an EPUB"),
    ("content.xml", "an OpenDocument file"),
)


def text_of(data: bytes, media: Media, limits: IntakeLimits) -> str:
    """The file's text. RefusedFileError: there is none, or it is protected, too large, not what it seemed."""
    parse: Callable[[bytes, IntakeLimits], str] = {
        Media.PDF: _pdf,
        Media.DOCX: _docx,
        Media.HTML: _html,
    }[media]
    text = tidy(parse(data, limits))
    _bound([text], limits)
    if not text:
        raise RefusedFileError(Reason.NO_TEXT, "The file holds no text. Send one that does.")
    return text


def tidy(text: str) -> str:
    """The text without what no reader sees: control characters, lone surrogates, blanks at the ends of lines
    and more than one empty line in a row."""
    lines = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode()).splitlines()
    visible = ("".join(one for one in line if one == "\t" or one.isprintable()).rstrip() for line in lines)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(visible)).strip()


def _pdf(data: bytes, limits: IntakeLimits) -> str:
    from pypdf import PasswordType, PdfReader

    reader = PdfReader(io.BytesIO(data))
    # Many PDFs are encrypted for everybody to read, with an empty password.
    if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
        raise RefusedFileError(
            Reason.ENCRYPTED, "The PDF is protected by a password. Save it without one and send it again."
        )
    count = len(reader.pages)
    if count > limits.pages:
        raise RefusedFileError(
            Reason.TOO_LARGE,
            f"The PDF has {count} pages, and this server takes {limits.pages}. Send it in parts, or have "
            "KM_MAX_PAGES raised.",
        )
    pages: list[str] = []
    for page in reader.pages:
        pages.append(page.extract_text())
        _bound(pages, limits)
    text = "\n\n".join(pages)
    if not text.strip():
        raise RefusedFileError(
            Reason.NO_TEXT,
            f"The PDF has {count} {'page' if count == 1 else 'pages'} and no text in them: it seems to be "
            "scanned. Have OCR read it (ocrmypdf does) and send the result.",
        )
    return text


def _docx(data: bytes, limits: IntakeLimits) -> str:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_archive(archive, limits)
    import mammoth
    from markdownify import markdownify

    html = mammoth.convert_to_html(io.BytesIO(data), convert_image=lambda _image: []).value
    text: str = markdownify(html, heading_style="ATX", strip=["a", "img"], escape_misc=False)
    return text


def _check_archive(archive: zipfile.ZipFile, limits: IntakeLimits) -> None:
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    if _WORD_DOCUMENT not in names:
        others = (what for mark, what in _OTHER_ZIPS if any(name.startswith(mark) for name in names))
        what = next(others, "a ZIP archive")
        raise RefusedFileError(
            Reason.UNSUPPORTED, f"The file is {what}. Save it as PDF, or unpack it. {TAKEN}"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise RefusedFileError(Reason.ENCRYPTED, "The file is protected by a password. Save it without one.")
    # What the directory says is also the most that is unpacked.
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > limits.unpacked_bytes or len(entries) > _MAX_ENTRIES:
        raise RefusedFileError(
            Reason.TOO_LARGE,
            f"The file unpacks to {unpacked} bytes in {len(entries)} parts, and this server takes "
            f"{limits.unpacked_bytes} in {_MAX_ENTRIES}. Send it in parts, or have KM_MAX_UNPACKED_BYTES "
            "raised.",
        )


def _html(data: bytes, _limits: IntakeLimits) -> str:
    import trafilatura

    # Without menus, banners and the like; all of the text where no such part stands out.
    main: str | None = trafilatura.extract(
        data, output_format="markdown", include_comments=False, include_tables=True, favor_recall=True
    )
    if main:
        return main
    whole: str = trafilatura.html2txt(data)
    return whole


def _bound(pieces: list[str], limits: IntakeLimits) -> None:
    size = sum(len(piece.encode("utf-8", "ignore")) for piece in pieces)
    if size > limits.text_bytes:
        raise RefusedFileError(
            Reason.TOO_LARGE,
            f"The file's text has more than the {limits.text_bytes} bytes that this server takes. Send it in "
            "parts, or have KM_MAX_DOCUMENT_BYTES raised.",
        )
