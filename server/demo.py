"""`km demo`: the main job on the sample document, with a server of its own, from upload to receipt."""

from __future__ import annotations

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from km_registry.prompts import passages_context
from server.client import read_events
from server.demo_scoring import Scorer
from server.evaluation.metrics import is_right
from server.own_server import OwnServerError, own_server
from server.sample import Sample, SampleError, load_sample
from server.training_display import TrainingDisplay

#: Ways to ask: what is sent with the question.
WAYS: dict[str, dict[str, str]] = {
    "base": {"mode": "base"},
    "icl": {"mode": "icl"},
    "km": {"mode": "km"},
    "km+ke": {"mode": "km", "ke": "default"},
    "auto": {"mode": "auto"},
}
_MAX_TOKENS = 32
#: Questions in flight at a time.
_TOGETHER = 8
#: Tokens of each base answer that are compared before and after; they are asked one by one.
_COMPARED_TOKENS = 16


class DemoError(Exception):
    """The demo could not be carried through."""


def main(
    recipe: dict[str, Any] | None = None, document: Path | None = None, models: Path | None = None
) -> int:
    """Run the demo and print its table and its JSON line; 0 when everything held. See `run`."""
    console = Console()
    try:
        figures = run(console, recipe or {}, document, models)
    except (DemoError, SampleError) as error:
        console.print(f"[red]The demo stopped: {error}[/red]")
        return 1
    console.print(json.dumps(figures), soft_wrap=True, highlight=False, markup=False)
    return 0 if figures["after_delete"] == "404" and figures["base_unchanged"] else 1


def run(
    console: Console, recipe: dict[str, Any], document: Path | None = None, models: Path | None = None
) -> dict[str, Any]:
    """The whole story on a server with a fresh data directory; returns the figures.

    `document` is a Markdown file with its questions beside it (.jsonl), the sample in the package otherwise.
    `models` is a directory that converted models are kept in; without one it ends with the demo.

    Raises:
        DemoError: the server did not start, or the training failed.
        SampleError: there is no such document.
    """
    sample = load_sample(document)
    with tempfile.TemporaryDirectory(prefix="km-demo-") as directory:
        data_dir = Path(directory) / "data"
        try:
            with own_server(data_dir, models=models) as server:
                key = {"Authorization": f"Bearer {server.admin_key}"}
                with httpx.Client(base_url=server.url, headers=key, timeout=httpx.Timeout(600.0)) as http:
                    figures = _story(http, Scorer.for_data_dir(http, data_dir), sample, recipe, console)
                figures["peak_rss_gb"] = round(server.memory.peak_bytes / 2**30, 2)
        except OwnServerError as error:
            raise DemoError(str(error)) from error
    return figures


def _story(
    http: httpx.Client, scorer: Scorer, sample: Sample, recipe: dict[str, Any], console: Console
) -> dict[str, Any]:
    questions = [question["question"] for question in sample.questions]
    before = scorer.base_tokens(questions, _COMPARED_TOKENS)
    uploaded = _checked(
        http.post("/documents", json={"title": sample.title, "text": sample.text, "recipe": recipe})
    )
    document_id = uploaded["document"]["id"]
    console.print(f"\nUploaded [bold]{sample.title}[/bold] as {document_id}; its KM is being trained.")
    seconds = _watch_training(http, document_id, console)
    km = _checked(http.get(f"/documents/{document_id}"))["km"]

    console.print(f"Trained in {seconds:.0f} s. Asking {len(questions)} questions in {len(WAYS)} ways …")
    answers = {way: _ask_all(http, document_id, questions, sent) for way, sent in WAYS.items()}
    nll = {
        way: scorer.answer_nll(
            _model(document_id, given), sample.title, sample.questions, _contexts(sample, given)
        )
        for way, given in answers.items()
    }
    console.print(_table(sample, answers))

    receipt = _checked(http.delete(f"/documents/{document_id}"))
    console.print(f"Deleted; the receipt says what was purged: {json.dumps(receipt['purged'])}")
    gone = http.post("/answer", json={"document_id": document_id, "question": questions[0]}).status_code
    console.print(f"Asked again: {gone}. Asking the base model the same questions again …")
    after = scorer.base_tokens(questions, _COMPARED_TOKENS)
    right = {
        mode: sum(
            is_right(given["answer"], asked["answers"])
            for given, asked in zip(answers[mode], sample.questions, strict=True)
        )
        for mode in WAYS
    }
    return {
        "train_seconds": round(seconds, 1),
        "recovered": km["metrics"]["recovered"],
        "questions": len(questions),
        **{f"right_{mode}": right[mode] for mode in WAYS},
        **{f"nll_{mode}": round(nll[mode], 3) for mode in WAYS},
        "auto": answers["auto"][0]["mode"],
        "auto_ke": answers["auto"][0]["ke_name"],
        **{f"prompt_tokens_{way}": _mean_prompt(answers[way]) for way in ("icl", "km", "auto")},
        "after_delete": str(gone),
        "base_unchanged": before == after,
    }


def _model(document_id: str, answers: list[dict[str, Any]]) -> str:
    """The name under which /v1 asks what gave these answers."""
    model = document_id if answers[0]["km_id"] else "base"
    return f"{model}+{answers[0]['ke_id']}" if answers[0]["ke_id"] else model


def _contexts(sample: Sample, answers: list[dict[str, Any]]) -> list[str | None]:
    """What stood in each prompt beside the question."""
    if answers[0]["mode"] == "icl":
        return [sample.text] * len(answers)
    return [
        passages_context([passage["text"] for passage in answer["passages"]]) or None for answer in answers
    ]


def _mean_prompt(answers: list[dict[str, Any]]) -> float:
    tokens: int = sum(answer["prompt_tokens"] for answer in answers)
    return round(tokens / len(answers), 1)


def _ask_all(
    http: httpx.Client, document_id: str, questions: list[str], sent: dict[str, str]
) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(_TOGETHER) as pool:
        return list(pool.map(lambda question: _ask(http, document_id, question, sent), questions))


def _ask(http: httpx.Client, document_id: str, question: str, sent: dict[str, str]) -> dict[str, Any]:
    body = {"document_id": document_id, "question": question, "max_tokens": _MAX_TOKENS}
    return _checked(http.post("/answer", json=body | sent))


def _checked(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise DemoError(f"{response.request.method} {response.request.url.path}: {response.text[:500]}")
    parsed: dict[str, Any] = response.json()
    return parsed


def _watch_training(http: httpx.Client, document_id: str, console: Console) -> float:
    """Show the training as it goes; seconds from upload to publication."""
    began = time.monotonic()
    path = f"/documents/{document_id}/events"
    with TrainingDisplay(console) as display, http.stream("GET", path) as response:
        for event in read_events(response.iter_lines()):
            if event.kind == "progress":
                display.show(event.data)
            elif event.kind == "published":
                return time.monotonic() - began
            elif event.kind in ("failed", "cancelled"):
                reason = event.data.get("error", "no reason given")
                raise DemoError(f"the training ended as {event.kind}: {reason}")
    raise DemoError("the server ended the event stream before the training was over")


def _table(sample: Sample, answers: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table("question", *WAYS, show_lines=True)
    for number, question in enumerate(sample.questions):
        cells = []
        for mode in WAYS:
            text = answers[mode][number]["answer"].replace("\n", " ")
            style = "green" if is_right(text, question["answers"]) else "dim"
            cells.append(f"[{style}]{_escaped(text)}[/{style}]")
        table.add_row(f"{_escaped(question['question'])}\n→ {_escaped(question['answers'][0])}", *cells)
    return table


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
