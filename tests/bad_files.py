"""Files that were damaged at random, and files that were made to do harm."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping

from tests.unit.server.intake.files import docx, page_of_the_web, paragraph, pdf, table, zipped

LINES = ["The lighthouse of Kaldvik was lit in 1871.", "Its keeper was Marta Osk (née Lind)."]
KINDS = ("pdf", "docx", "html", "text")
_MARKS = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xc3",
    b"%PDF-",
    b"PK\x03\x04",
    b"<html>",
    b"\r",
    b"\xf4\x90\x80\x80",
)
_NUMBERS = (b"0", b"-1", b"4294967295", b"99999999999999999999", b"1e9", b"\x00")


def whole(kind: str) -> bytes:
    """A sound file of this kind."""
    match kind:
        case "pdf":
            return pdf(["\n".join(LINES), LINES[0]])
        case "docx":
            return docx(paragraph("Kaldvik", "Heading1") + paragraph(LINES[0]) + table([["lit", "1871"]]))
        case "html":
            return page_of_the_web(LINES)
        case _:
            return "\n\n".join(LINES).encode()


def mutated(kind: str, count: int, *, seed: int) -> Iterator[bytes]:
    """So many damaged files of this kind, each another one."""
    sound = whole(kind)
    for number in range(count):
        rng = random.Random(f"{seed} {kind} {number}")
        data = sound
        if kind == "docx" and rng.random() < 0.7:
            # Most damage to a ZIP is found by its checksums: what lies in it is damaged and packed again.
            yield _repacked(sound, rng)
            continue
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            data = rng.choice(_MUTATIONS)(data, rng)
        yield data


def _repacked(sound: bytes, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(files))
    for _ in range(rng.choice((1, 2, 8))):
        files[name] = rng.choice(_MUTATIONS)(files[name], rng)
    return zipped(files)


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 64, 1024)))


def _cut(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 3, 200)) + data[end:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_MARKS) * rng.choice((1, 1, 50)) + data[at:]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _renumber(data: bytes, rng: random.Random) -> bytes:
    """A number that says how long, how many or where is another one."""
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if not digits:
        return data
    at = rng.choice(digits)
    return data[:at] + rng.choice(_NUMBERS) + data[at + 1 :]


def _swap(data: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_span(data, rng), _span(data, rng)))
    if b > c:
        return data
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip,
    _cut,
    _repeat,
    _insert,
    _truncate,
    _renumber,
    _swap,
)


def _nested(depth: int) -> bytes:
    inner = b"a" * 100_000
    for _ in range(depth):
        inner = zipped({"a.zip": inner, "b.zip": inner})
    return inner


def _overlapping() -> bytes:
    """A directory whose thousand entries are all the same bytes of the file."""
    data = docx(paragraph("a" * 1_000_000))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (entry,) = (one for one in archive.infolist() if one.filename == "word/document.xml")
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    record_at = data.index(b"word/document.xml", start) - 46
    record = data[record_at : record_at + 46 + len(entry.filename)]
    many = b"".join(record.replace(b"document.xml", b"%08d.xml" % number) for number in range(1000))
    directory = data[start:end] + many
    count = (len(archive.infolist()) + 1000).to_bytes(2, "little")
    tail = (
        data[end : end + 8] + count * 2 + len(directory).to_bytes(4, "little") + start.to_bytes(4, "little")
    )
    return data[:start] + directory + tail + b"\0\0"


def _laughs() -> str:
    entities = '<!ENTITY a "lol">' + "".join(
        f'<!ENTITY {after} "{f"&{before};" * 10}">'
        for before, after in zip("abcdefghi", "bcdefghij", strict=True)
    )
    return f"<!DOCTYPE w [{entities}]>"


def _pdf_of(objects: Mapping[int, bytes]) -> bytes:
    """A PDF of these objects, the first of which is the catalogue."""
    everything = {1: b"<</Type/Catalog/Pages 2 0 R>>", **objects}
    out, places = bytearray(b"%PDF-1.7\n"), {}
    for number, content in sorted(everything.items()):
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    xref = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(everything) + 1)
    out += b"".join(b"%010d 00000 n \n" % places[number] for number in sorted(places))
    out += b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(everything) + 1, xref)
    return bytes(out)


def _bomb() -> bytes:
    return docx(paragraph(LINES[0]), {"word/media/zeros.bin": bytes(300_000_000)})


def _drawing_itself() -> bytes:
    form = b"<</Type/XObject/Subtype/Form/Resources<</XObject<</X 5 0 R>>>>/Length 11>>"
    return _pdf_of(
        {
            2: b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            3: b"<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</XObject<</X 5 0 R>>>>>>",
            4: b"<</Length 5>>stream\n/X Do\nendstream",
            5: form + b"stream\n/X Do /X Do\nendstream",
        }
    )


def _in_a_circle() -> bytes:
    return _pdf_of(
        {
            2: b"<</Type/Pages/Kids[3 0 R]/Count 1/Parent 3 0 R>>",
            3: b"<</Type/Pages/Kids[2 0 R]/Count 1/Parent 2 0 R>>",
        }
    )


def _million_pages() -> bytes:
    kids = b"3 0 R " * 1_000_000
    return _pdf_of({2: b"<</Type/Pages/Kids[%s]/Count 1000000>>" % kids, 3: b"<</Type/Page/Parent 2 0 R>>"})


#: Files made to cost more than they weigh, by what they do.
HARMFUL: Mapping[str, Callable[[], bytes]] = {
    "zip bomb": _bomb,
    "zip bomb in the text": lambda: docx(paragraph("a" * 60_000_000)),
    "nested archives": lambda: docx(paragraph(LINES[0]), {"word/embeddings/inner.zip": _nested(12)}),
    "archive of archives": lambda: _nested(12),
    "overlapping entries": lambda: _overlapping(),
    "entities that multiply": lambda: docx("<w:p><w:r><w:t>&j;</w:t></w:r></w:p>", prolog=_laughs()),
    "deep paragraphs": lambda: docx("<w:p>" * 50_000 + "</w:p>" * 50_000),
    "deep elements": lambda: b"<html><body>" + b"<div>" * 200_000 + LINES[0].encode(),
    "many attributes": lambda: b"<html><body><p " + b"a=b " * 500_000 + b">x</p>",
    "a line of 100 MB": lambda: b"a" * 100_000_000,
    "a page of one line of 15 MB": lambda: b"<html><body><p>" + b"a" * 15_000_000,
    "NUL bytes": lambda: b"\0" * 10_000,
    "broken UTF-8": lambda: b"\xff\xfe\xfd" * 3000 + LINES[0].encode(),
    "half a character": lambda: LINES[0].encode() + b"\xe2\x82",
    "pages that hold themselves": lambda: _pdf_of({2: b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"}),
    "pages in a circle": _in_a_circle,
    "objects that are each other": lambda: _pdf_of(
        {2: b"<</Type/Pages/Kids 3 0 R/Count 1>>", 3: b"4 0 R", 4: b"3 0 R"}
    ),
    "a form that draws itself": _drawing_itself,
    "deep arrays": lambda: _pdf_of({2: b"[" * 100_000 + b"]" * 100_000}),
    "a million pages": _million_pages,
}
