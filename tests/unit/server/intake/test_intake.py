"""The child that parses: whatever the file does, the server goes on and says what was wrong."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from server.intake.intake import Intake
from server.intake.limits import IntakeLimits
from server.intake.refusal import Reason, RefusedFileError
from tests.bad_files import mutated, whole
from tests.unit.server.intake.files import docx, page_of_the_web, paragraph, pdf
from tests.unit.server.intake.test_parsers import LIMITS


async def refusal(data: bytes, limits: IntakeLimits = LIMITS) -> RefusedFileError:
    with pytest.raises(RefusedFileError) as refused:
        await Intake(limits).text_of(data)
    return refused.value


@pytest.mark.parametrize(
    "data", [pdf(["Lit in 1871."]), docx(paragraph("Lit in 1871.")), page_of_the_web(["Lit in 1871."])]
)
async def test_a_file_is_read_in_a_child(data: bytes) -> None:
    before = psutil.Process().children()
    text = await Intake(LIMITS).text_of(data)
    assert text is not None
    assert "Lit in 1871." in text
    assert psutil.Process().children() == before


async def test_text_is_left_to_whoever_knows_utf8() -> None:
    assert await Intake(LIMITS).text_of(b"Lit in 1871.") is None


@pytest.mark.parametrize("data", [b"%PDF-1.7", b"PK\x03\x04 text", pdf(["Lit."])[:200]])
async def test_a_broken_file_is_refused(data: bytes) -> None:
    refused = await refusal(data)
    assert refused.reason is Reason.DAMAGED
    assert "save it anew" in str(refused)


async def test_too_much_time_is_not_taken() -> None:
    # A page that draws itself, over and over.
    endless = pdf(["a"], drawn="BT /F1 9 Tf " + "(a) Tj " * 400_000 + "ET")
    refused = await refusal(endless, replace(LIMITS, seconds=1))
    assert refused.reason is Reason.TOO_COMPLEX
    assert "longer than 1 s" in str(refused)


async def test_too_much_memory_is_not_taken() -> None:
    large = docx(paragraph("a") * 200_000)
    limits = replace(LIMITS, memory_bytes=200 * 2**20, unpacked_bytes=10**9)
    refused = await refusal(large, limits)
    assert refused.reason is Reason.TOO_COMPLEX
    assert "200 MiB" in str(refused)


@pytest.mark.parametrize(
    "act",
    [
        "import pathlib; pathlib.Path('written').write_text('x')",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
    ],
)
def test_the_child_reaches_nothing_outside(act: str, tmp_path: Path) -> None:
    code = (
        "from server.intake import child; from server.intake.limits import IntakeLimits\n"
        f"child._bound_ourselves(IntakeLimits(**{asdict(LIMITS)!r}))\n{act}\nprint('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode == 0, done.stdout) == (False, "")
    assert [path for path in tmp_path.iterdir() if path.stat().st_size] == []


async def test_an_entity_reads_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary-91")
    prolog = f'<!DOCTYPE w [<!ENTITY leak SYSTEM "file://{secret}">]>'
    try:
        text = await Intake(LIMITS).text_of(docx(paragraph("Lit. &leak;"), prolog=prolog))
    except RefusedFileError as refused:
        text = str(refused)
    assert "canary" not in (text or "")


async def test_entities_do_not_grow_without_end() -> None:
    names = [f"e{number}" for number in range(12)]
    entities = "".join(
        f'<!ENTITY {name} "{f"&{names[number - 1]};" * 10 if number else "lol " * 10}">'
        for number, name in enumerate(names)
    )
    bomb = docx(paragraph(f"&{names[-1]};"), prolog=f"<!DOCTYPE w [{entities}]>")
    refused = await refusal(bomb)
    assert refused.reason in (Reason.DAMAGED, Reason.TOO_COMPLEX, Reason.NO_TEXT)


@pytest.mark.parametrize("kind", ["pdf", "docx", "html"])
async def test_mutated_files_harm_nobody(kind: str) -> None:
    """By the real child; tests/unit/server/intake/test_fuzz.py reads many more, by a faster one."""
    intake = Intake(LIMITS)
    for damaged in mutated(kind, 1, seed=1):
        with contextlib.suppress(RefusedFileError):
            await intake.text_of(damaged)
    assert await intake.text_of(whole(kind))
