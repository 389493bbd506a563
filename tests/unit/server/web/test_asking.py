"""Asking on a document's page: one mode or several, streamed together."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from httpx import Response

from km_registry.registry import Registry
from server.app import AppState
from server.engine.scripted import ScriptedEngine
from server.modes import Mode
from server.questions import Question
from server.web.answers import placed, side_by_side
from tests.unit.server.conftest import TEXT, Someone, error_of, train
from tests.unit.server.web.conftest import Browser

ALL = ["base", "rag", "km", "km+rag", "icl"]


def told(response: Response) -> list[tuple[str, dict[str, Any]]]:
    assert response.status_code == 200, response.text
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines())
        for block in response.text.split("\n\n")
        if block
    ]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


async def ask(page: Browser, document_id: str, ways: list[str], **fields: Any) -> Response:
    body = {"question": "When does it open?", "modes": ways, "max_tokens": 8} | fields
    return await page.do(f"/ui/documents/{document_id}/ask", json=body)


async def test_an_answer_says_how_it_was_made_and_what_it_cost(page: Browser, ada: Someone) -> None:
    document_id = await ada.upload()
    events = told(await ask(page, document_id, ["auto"]))
    pieces = [data["text"] for kind, data in events if kind == "delta"]
    kind, last = events[-2]
    assert (kind, events[-1]) == ("answer", ("end", {"html": ""}))
    assert "".join(pieces).strip() in last["html"]
    text = re.sub(r"<[^>]+>|\s+", " ", last["html"])
    assert "Retrieval" in text
    assert "Auto chose it: the document's KM is not trained yet" in text.replace("&#39;", "'")
    assert re.search(r"Prompt *\d+ tokens", text)
    assert re.search(r"\d ms", text)
    assert "Characters 0–" in text


async def test_every_way_is_compared_side_by_side(page: Browser, ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    events = told(await ask(page, document_id, ALL))
    assert [data["mode"] for kind, data in events if kind == "answer"].sort() == ALL.sort()
    assert {data["mode"] for kind, data in events if kind == "delta"} == set(ALL)
    kind, last = events[-1]
    assert kind == "end"
    assert last["html"].count("<tr>") == 1 + len(ALL)


async def test_a_way_that_cannot_answer_says_why_and_the_others_do(page: Browser, ada: Someone) -> None:
    document_id = await ada.upload()
    events = told(await ask(page, document_id, ["km", "icl"]))
    refusals = {data["mode"]: data["message"] for kind, data in events if kind == "refusal"}
    assert list(refusals) == ["km"]
    assert "not trained" in refusals["km"]
    assert [data["mode"] for kind, data in events if kind == "answer"] == ["icl"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"question": ""}, "question"), ({"modes": []}, "modes"), ({"modes": ["nothing"]}, "modes.0")],
)
async def test_what_cannot_be_asked(page: Browser, ada: Someone, fields: dict[str, Any], param: str) -> None:
    document_id = await ada.upload()
    assert error_of(await ask(page, document_id, ["auto"], **fields), 422)["param"] == param


async def test_leaving_aborts_every_answer(ada: Someone, state: AppState, engine: ScriptedEngine) -> None:
    document_id = await ada.upload()
    engine.hold(after_tokens=2)
    answers = {
        mode: state.answerer.stream(ada.principal, Question(document_id, "When?", mode, max_tokens=8))
        for mode in (Mode.BASE, Mode.ICL)
    }
    pieces = side_by_side(answers)
    await anext(pieces)
    await pieces.aclose()
    await engine.until_idle()
    assert len(engine.cancelled) == len(engine.requests)


async def test_passages_have_their_place(ada: Someone, state: AppState) -> None:
    document_id = await ada.upload()
    answer = await state.answerer.answer(
        ada.principal, Question(document_id, "Maren bell", Mode.RAG, max_tokens=8)
    )
    places = placed(answer, TEXT)
    assert len(places) == 2
    for one in places:
        assert TEXT[one.start : one.end] == one.text
        assert one.before + one.text + one.after == TEXT
        assert one.left == round(100 * one.start / len(TEXT), 2)
    # The best one stands first for a reader, and last in the prompt.
    assert places[0].score >= places[1].score
