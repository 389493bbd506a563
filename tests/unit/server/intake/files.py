"""Files of every type, made here: the smallest that real readers take."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

_CONTENT_TYPES = (
    '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
    'wordprocessingml.document.main+xml"/></Types>'
)
_RELATIONSHIPS = (
    '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/'
    'officeDocument" Target="word/document.xml"/></Relationships>'
)
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def pdf(pages: Sequence[str], *, password: str | None = None, drawn: str = "") -> bytes:
    """A PDF with these lines, one text for each page; `drawn` is what else is on every page."""
    writer = PdfWriter()
    for text in pages:
        page = writer.add_blank_page(300, 300)
        font = DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
        lines = " ".join(f"({line}) Tj T*" for line in text.splitlines())
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 14 TL 20 280 Td {lines} ET {drawn}".encode())
        page[NameObject("/Contents")] = writer._add_object(content)
    if password is not None:
        writer.encrypt(password, "owner's", algorithm="AES-256")
    return _written(writer)


def docx(body: str, parts: Mapping[str, bytes] | None = None, *, prolog: str = "") -> bytes:
    """A DOCX with this body (WordprocessingML) and these parts beside it."""
    root = f'<w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>'
    document = f'<?xml version="1.0"?>{prolog}{root}'
    files = {
        "[Content_Types].xml": _CONTENT_TYPES.encode(),
        "_rels/.rels": _RELATIONSHIPS.encode(),
        "word/document.xml": document.encode(),
    }
    return zipped(files | dict(parts or {}))


def paragraph(text: str, style: str | None = None) -> str:
    """A paragraph of a DOCX."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f'<w:p>{properties}<w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of a DOCX."""
    cells = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A ZIP of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def page_of_the_web(paragraphs: Sequence[str]) -> bytes:
    """An HTML page with a menu, a script and a footer around its text."""
    text = "".join(f"<p>{one}</p>" for one in paragraphs)
    return (
        "<!DOCTYPE html><html><head><title>Kaldvik</title><script>var menu = 1;</script></head><body>"
        "<nav><ul><li><a href='/'>Start</a></li><li><a href='/buy'>Buy now</a></li></ul></nav>"
        f"<main><article><h1>The lighthouse</h1>{text}</article></main>"
        "<footer>All rights reserved. <a href='/cookies'>Cookies</a></footer></body></html>"
    ).encode()


def _written(writer: PdfWriter) -> bytes:
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()
