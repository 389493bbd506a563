"""Text out of every type of file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.intake.limits import IntakeLimits
from server.intake.media import Media
from server.intake.parsers import text_of, tidy
from server.intake.refusal import Reason, RefusedFileError
from tests.unit.server.intake.files import docx, page_of_the_web, paragraph, pdf, table, zipped

LIMITS = IntakeLimits(
    file_bytes=10**6, text_bytes=10**5, pages=50, unpacked_bytes=10**6, memory_bytes=2**30, seconds=20
)


def refusal(data: bytes, media: Media, limits: IntakeLimits = LIMITS) -> RefusedFileError:
    with pytest.raises(RefusedFileError) as refused:
        text_of(data, media, limits)
    return refused.value


def test_pages_of_a_pdf_follow_each_other() -> None:
    data = pdf(["The lighthouse of Kaldvik\nwas lit in 1871.", "Its keeper was Marta Osk."])
    assert text_of(data, Media.PDF, LIMITS) == (
        "The lighthouse of Kaldvik\nwas lit in 1871.\n\nIts keeper was Marta Osk."
    )


def test_a_pdf_that_everybody_may_read_is_read() -> None:
    assert text_of(pdf(["Lit in 1871."], password=""), Media.PDF, LIMITS) == "Lit in 1871."


def test_a_pdf_with_a_password_is_refused() -> None:
    refused = refusal(pdf(["Lit in 1871."], password="secret"), Media.PDF)
    assert refused.reason is Reason.ENCRYPTED
    assert "without one" in str(refused)


@pytest.mark.parametrize(("count", "said"), [(1, "1 page and"), (3, "3 pages and")])
def test_a_scanned_pdf_is_refused(count: int, said: str) -> None:
    refused = refusal(pdf([""] * count, drawn="10 10 50 50 re f"), Media.PDF)
    assert refused.reason is Reason.NO_TEXT
    assert said in str(refused)
    assert "OCR" in str(refused)


def test_pages_are_bounded() -> None:
    refused = refusal(pdf(["a"] * 4), Media.PDF, replace(LIMITS, pages=3))
    assert refused.reason is Reason.TOO_LARGE
    assert "4 pages, and this server takes 3" in str(refused)


def test_text_is_bounded_while_it_is_read() -> None:
    refused = refusal(pdf(["a" * 60] * 4), Media.PDF, replace(LIMITS, text_bytes=100))
    assert refused.reason is Reason.TOO_LARGE
    assert "100 bytes" in str(refused)


def test_a_docx_becomes_markdown() -> None:
    body = (
        paragraph("The lighthouse", "Heading1")
        + paragraph("Lit in 1871 &amp; never out since.")
        + table([["Year", "Keeper"], ["1871", "Marta Osk"]])
    )
    text = text_of(docx(body), Media.DOCX, LIMITS)
    assert "Lit in 1871 & never out since." in text
    assert "The lighthouse" in text
    assert "| 1871 | Marta Osk |" in text


def test_pictures_of_a_docx_are_left_out() -> None:
    text = text_of(docx(paragraph("Lit."), {"word/media/a.png": b"\x89PNG" * 100}), Media.DOCX, LIMITS)
    assert text == "Lit."


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["xl/workbook.xml"], "Excel"),
        (["ppt/slides/slide1.xml"], "PowerPoint"),
        (["META-INF/container.xml"], "EPUB"),
        (["content.xml"], "OpenDocument"),
        (["notes.txt"], "a ZIP archive"),
    ],
)
def test_another_zip_is_named(names: list[str], said: str) -> None:
    refused = refusal(zipped(dict.fromkeys(names, b"text")), Media.DOCX)
    assert refused.reason is Reason.UNSUPPORTED
    assert said in str(refused)


def test_a_zip_bomb_is_not_unpacked() -> None:
    bomb = docx(paragraph("Lit."), {"word/media/a.bin": b"\0" * 5 * 10**6})
    assert len(bomb) < 10_000
    refused = refusal(bomb, Media.DOCX)
    assert refused.reason is Reason.TOO_LARGE
    assert "unpacks to 5" in str(refused)


def test_of_an_html_page_the_text_is_read() -> None:
    paragraphs = [
        f"In {year} the lighthouse of Kaldvik was lit anew by its keeper." for year in range(1871, 1881)
    ]
    text = text_of(page_of_the_web(paragraphs), Media.HTML, LIMITS)
    assert all(paragraph in text for paragraph in paragraphs)
    assert "lighthouse" in text
    for noise in ("Buy now", "Cookies", "var menu"):
        assert noise not in text


def test_a_short_html_page_is_read_whole() -> None:
    assert "Lit in 1871." in text_of(b"<html><body><div>Lit in 1871.</div></body></html>", Media.HTML, LIMITS)


def test_html_without_text_is_refused() -> None:
    assert refusal(b"<html><script>1</script></html>", Media.HTML).reason is Reason.NO_TEXT


def test_what_no_reader_sees_is_left_out() -> None:
    assert tidy("\ufeff a\0b \t\r\n\n\n\nc\x1b[0m\ud800 \n") == " ab\n\nc[0m".strip()
