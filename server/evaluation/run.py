"""`km eval`: the whole evaluation on one page, from data and rows to the report."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from km_registry import base_model
from km_registry.base_model import BaseModel
from km_registry.errors import KMError
from km_registry.prompts import PROMPT_FORMAT, ChatTokenizer
from server.evaluation import documents as data
from server.evaluation import readers, report, rows, state
from server.evaluation.api import Api
from server.evaluation.asking import MAX_TOKENS, Asking, others
from server.evaluation.documents import EvalDocument
from server.evaluation.plot import save_plot
from server.evaluation.progress import Display
from server.evaluation.records import Source
from server.evaluation.results import Results, results
from server.evaluation.rows import Plan
from server.evaluation.state import State
from server.evaluation.training import Trainings
from server.own_server import own_server
from server.surroundings import machine, versions

#: Metrics come from these, beside what every figure depends on.
_PACKAGES = ("rouge-score", "nltk", "numpy")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to measure, on what, and where to keep it."""

    data: Path
    layout: str
    rows: Sequence[str]
    out: Path
    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    definitions: Path | None = None
    split: str = "val"
    documents: int | None = None
    min_questions: int = 1
    max_questions: int | None = None
    max_tokens: int | None = None
    seed: int = 0
    server: str | None = None
    key: str | None = None
    base_model: str = base_model.EMBEDDED
    data_dir: Path = Path()
    retry: bool = False
    fresh: bool = False
    save: Path | None = None
    kes: Sequence[Path] = ()
    #: Standard output is for a program: it gets the JSON line, and nothing else.
    as_json: bool = False


def main(evaluation: Evaluation) -> int:
    """Carry the evaluation through, or on; prints the table and ends with one JSON line. 0 when every row has
    every document, 1 when something is missing or went wrong, 130 when it was stopped."""
    console = Console(stderr=evaluation.as_json)
    return exit_code(console, lambda: any(one.missing for one in carry_through(evaluation, console).rows))


def exit_code(console: Console, work: Callable[[], bool]) -> int:
    """The exit code of a command that may be stopped and called again. 0 when `work` says that nothing is
    missing, 1 when something is or went wrong, 130 when it was stopped; says what the last two mean."""
    try:
        return 1 if work() else 0
    except KMError as error:
        console.print(f"km: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped. The same command goes on where it was.")
        return 130


def carry_through(evaluation: Evaluation, console: Console) -> Results:
    """Read, draw, train, ask, report; whatever earlier runs have done is not done again.

    Raises:
        KMError: data, rows, base model or server are not what they should be; the message says what to do.
    """
    model, tokenizer = base_and_tokenizer(evaluation, console)
    documents = drawn(evaluation, tokenizer)
    plan = rows.plan(evaluation.rows, evaluation.recipe, evaluation.definitions)
    if any(row.wrong for row in plan.rows):
        others(documents, evaluation.seed)  # says early what it needs
    arguments = arguments_of(evaluation, model, documents)
    defined = {row.name: row.model_dump(mode="json", exclude={"name", "about"}) for row in plan.rows}
    with state.opened(evaluation.out, arguments, defined, fresh=evaluation.fresh) as kept:
        console.print(
            f"{len(documents)} documents, {sum(len(one.questions) for one in documents)} questions, "
            f"{len(plan.rows)} rows, {len(plan.training)} of them to train. Kept in {kept.directory}",
            soft_wrap=True,
        )
        with serving(evaluation, kept, console) as url:
            found = asyncio.run(_measure_at(url, evaluation, plan, documents, tokenizer, kept, console))
        _report(evaluation, plan, found, arguments, kept, console)
    return found


async def measure(
    http: httpx.AsyncClient,
    evaluation: Evaluation,
    plan: Plan,
    documents: Sequence[EvalDocument],
    tokenizer: ChatTokenizer,
    kept: State,
    console: Console,
) -> Results:
    """Upload, wait for the trainings, ask; the figures. Cancelling it leaves a state to go on from."""
    api, seed = Api(http), evaluation.seed
    for directory in evaluation.kes:
        await api.register_ke(kept.admin_key or "", directory)
    with Display(console) as display:
        trainings = Trainings(api, kept, plan, documents, display)
        await trainings.upload(evaluation.name)
        if evaluation.retry:
            await trainings.retry()
        await trainings.wait()
        asking = Asking(api, kept, plan, documents, tokenizer, display, seed=seed)
        await asking.ask()
    missing = {
        (row.name, document.id): reason
        for row in plan.rows
        for document in documents
        if (reason := asking.missing(row, document)) is not None
    }
    return results(plan, documents, kept, missing, seed=seed)


async def _measure_at(url: str, *parts: Any) -> Results:
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(600.0, connect=10.0)) as http:
        return await measure(http, *parts)


# --- the parts ---------------------------------------------------------------------------------------------


def base_and_tokenizer(evaluation: Evaluation, console: Console) -> tuple[BaseModel, ChatTokenizer]:
    """The base model as this machine has it, and its tokenizer, by which prompts are scored."""
    with _status(console, "Finding the base model") as say:
        model = base_model.resolve(evaluation.base_model, evaluation.data_dir, say)
        # Costs seconds to import.
        from transformers import AutoTokenizer

        tokenizer: ChatTokenizer = AutoTokenizer.from_pretrained(model.path)
    return model, tokenizer


def drawn(evaluation: Evaluation, tokenizer: ChatTokenizer) -> tuple[EvalDocument, ...]:
    """The documents that are measured. DataError where they cannot be read or are too few."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    limit = evaluation.max_tokens or readers.MAX_TOKENS.get(evaluation.layout)
    source = Source(evaluation.data, count, limit, evaluation.split)
    return data.draw(
        readers.read(evaluation.layout, source),
        count=evaluation.documents,
        min_questions=evaluation.min_questions,
        max_questions=evaluation.max_questions,
        seed=evaluation.seed,
    )


def arguments_of(
    evaluation: Evaluation, model: BaseModel, documents: Sequence[EvalDocument]
) -> dict[str, Any]:
    """All that answers depend on, beside the rows. Names are those of the options."""
    return {
        "format": evaluation.layout,
        "split": evaluation.split,
        "documents": evaluation.documents,
        "min_questions": evaluation.min_questions,
        "max_questions": evaluation.max_questions,
        "max_tokens": evaluation.max_tokens or readers.MAX_TOKENS.get(evaluation.layout),
        "seed": evaluation.seed,
        "server": evaluation.server or "own",
        "base_model": model.name,
        "base_fingerprint": model.fingerprint,
        "prompt_format": PROMPT_FORMAT,
        "answer_tokens": MAX_TOKENS,
        "data": {document.id: data.digest(document) for document in documents},
    }


@contextmanager
def serving(evaluation: Evaluation, kept: State, console: Console) -> Iterator[str]:
    """The URL of the server to ask; one of our own unless one is given. Its admin key is kept."""
    if evaluation.server:
        if evaluation.key:
            kept.keep_keys(admin_key=evaluation.key)
        yield evaluation.server
        return
    log = kept.directory / "server.log"
    with ExitStack() as stack:
        with _status(console, "Starting a server"):
            # By its setting, not its path: defaults such as the size of passages depend on it.
            options = [f"--base-model={evaluation.base_model}"]
            models = evaluation.data_dir / "models"
            server = stack.enter_context(
                own_server(kept.directory / "server", log=log, models=models, options=options)
            )
        if server.admin_key:
            kept.keep_keys(admin_key=server.admin_key)
        yield server.url


@contextmanager
def _status(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """Say what is being done that may take a while; in a terminal, what is said of it too."""
    if not console.is_terminal:
        console.print(f"{what} …")
        yield lambda _: None
        return
    with console.status(f"{what} …") as status:
        yield lambda said: status.update(f"{what}: {said} …")


def _report(
    evaluation: Evaluation,
    plan: Plan,
    found: Results,
    arguments: dict[str, Any],
    kept: State,
    console: Console,
) -> None:
    about = {
        "evaluation": evaluation.name,
        "command": command(evaluation),
        "arguments": arguments,
        "recipes": {row.name: json.dumps(row.recipe) for row in plan.training},
        "versions": versions(*_PACKAGES),
        "machine": machine(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    full = json.dumps(report.as_json(found, about), indent=2, ensure_ascii=False) + "\n"
    (kept.directory / "report.json").write_text(full, encoding="utf-8")
    (kept.directory / "report.md").write_text(report.as_markdown(found, about, kept), encoding="utf-8")
    save_plot(found, kept.directory / "quality.png")
    if evaluation.save:
        evaluation.save.parent.mkdir(parents=True, exist_ok=True)
        evaluation.save.write_text(full, encoding="utf-8")
    console.print(f"\n{report.table(found)}\n", soft_wrap=True, markup=False, highlight=False)
    if found.differences:
        console.print(f"{report.differences(found)}\n", soft_wrap=True, markup=False, highlight=False)
    for line in report.missing(found.rows):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"Report: {kept.directory / 'report.md'}, report.json, quality.png", soft_wrap=True)
    last = {"evaluation": evaluation.name, **report.summary(found), "at": about["at"]}
    sys.stdout.write(json.dumps(last) + "\n")


def drawing_options(evaluation: Evaluation) -> list[str]:
    """The options, as given, that say which of the data's documents and questions are drawn."""
    options = []
    for option in ("documents", "min_questions", "max_questions", "max_tokens"):
        value = getattr(evaluation, option)
        if value is not None and (option, value) != ("min_questions", 1):
            options.append(f"--{option.replace('_', '-')} {value}")
    return options


def command(evaluation: Evaluation) -> str:
    """The command that measures this again, with the data by their name: paths differ between machines."""
    parts = ["km eval", f"--data {evaluation.data.name}", f"--format {evaluation.layout}"]
    parts.append(f"--rows {','.join(evaluation.rows)}")
    if evaluation.recipe:
        parts.append(f"--recipe '{json.dumps(evaluation.recipe)}'")
    if evaluation.definitions:
        parts.append(f"--definitions {evaluation.definitions.name}")
    parts += [f"--ke {directory.name}" for directory in evaluation.kes]
    parts += drawing_options(evaluation)
    parts += [f"--split {evaluation.split}", f"--seed {evaluation.seed}", f"--name {evaluation.name}"]
    return " ".join(parts)
