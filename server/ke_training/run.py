"""`km train-ke` on one page: read documents, train their KMs, look up passages, train the KE beside them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from km_registry.artifacts import verify_ke
from km_registry.errors import KMError
from km_registry.ke_recipe import KERecipe, write_documents
from km_registry.processes import dying_with_me
from server.evaluation import rows, state
from server.evaluation.api import Api
from server.evaluation.documents import EvalDocument
from server.evaluation.progress import Display
from server.evaluation.rows import Plan
from server.evaluation.run import Evaluation, arguments_of, base_and_tokenizer, drawn, exit_code, serving
from server.evaluation.state import State
from server.evaluation.training import Trainings
from server.ke_training.gather import Passages, ke_documents

_STAGE = "KE"


class KETrainingError(KMError):
    """The KE was not trained."""


@dataclass(frozen=True, slots=True)
class KERequest:
    """What `km train-ke` was asked for. `gathered` says which documents, and how their KMs are trained."""

    gathered: Evaluation
    recipe: KERecipe
    k: int | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """The KE's own."""
        return self.gathered.out / f"ke-{self.gathered.name}"


def main(request: KERequest) -> int:
    """Carry the training through, or on. 0: the KE is there, 1: it is not, 130: it was stopped."""
    console = Console(stderr=request.gathered.as_json)

    def work() -> bool:
        carry_through(request, console)
        if request.gathered.as_json:
            manifest = verify_ke(request.directory, tensors=False)
            sys.stdout.write(json.dumps({"directory": str(request.directory), **manifest}) + "\n")
        return False

    return exit_code(console, work)


def carry_through(request: KERequest, console: Console) -> None:
    """Gather and train; whatever earlier runs have done is not done again.

    Raises:
        KMError: data, base model, recipe or directory are not what they should be.
    """
    if request.directory.exists():
        raise KETrainingError(
            f"{request.directory} is there already. Register it with `km ke add {request.directory}`, or "
            "take another --name."
        )
    gathered = request.gathered
    model, tokenizer = base_and_tokenizer(gathered, console)
    documents = drawn(gathered, tokenizer)
    plan = rows.plan(gathered.rows, gathered.recipe, gathered.definitions)
    arguments = arguments_of(gathered, model, documents)
    defined = {row.name: row.model_dump(mode="json", exclude={"name", "about"}) for row in plan.rows}
    with state.opened(gathered.out, arguments, defined, fresh=gathered.fresh) as kept:
        count = sum(len(one.questions) for one in documents)
        console.print(
            f"{len(documents)} documents, {count} questions. Kept in {kept.directory}", soft_wrap=True
        )
        passages = _gather(request, plan, documents, kept, console)
        found = ke_documents(documents, kept, plan.training[0], passages, kept.directory / "server")
        lines = kept.directory / "documents.jsonl"
        write_documents(lines, found)
        _train(request, lines, console)
    console.print(
        f"The KE is in {request.directory}. Register it: km ke add {request.directory}", soft_wrap=True
    )


def _gather(
    request: KERequest, plan: Plan, documents: Sequence[EvalDocument], kept: State, console: Console
) -> Passages:
    """Everything of the documents that a server is needed for; it is stopped before the KE trains."""

    async def at(url: str) -> Passages:
        async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(600.0, connect=10.0)) as http:
            return await gather(http, request, plan, documents, kept, console)

    with serving(request.gathered, kept, console) as url:
        return asyncio.run(at(url))


async def gather(
    http: httpx.AsyncClient,
    request: KERequest,
    plan: Plan,
    documents: Sequence[EvalDocument],
    kept: State,
    console: Console,
) -> Passages:
    """Upload the documents, wait for their KMs, look up their questions' passages."""
    api = Api(http)
    passages = Passages(api, kept, plan.training[0], k=request.k)
    with Display(console) as display:
        trainings = Trainings(api, kept, plan, documents, display)
        await trainings.upload(request.gathered.name)
        if request.gathered.retry:
            await trainings.retry()
        # While the KMs train: retrieval needs none.
        await asyncio.gather(passages.find(documents, display), trainings.wait())
    return passages


def _train(request: KERequest, documents: Path, console: Console) -> None:
    command = [sys.executable, "-m", "trainer_worker.ke", f"--documents={documents}"]
    command += [f"--recipe={request.recipe.model_dump_json()}", f"--name={request.gathered.name}"]
    command += [f"--about={json.dumps(dict(request.about))}", f"--out={request.directory}"]
    settings = {
        "KM_DATA_DIR": str(request.gathered.data_dir),
        "KM_BASE_MODEL": request.gathered.base_model,
    }
    with _child(command, os.environ | settings) as process, Display(console) as display:
        display.begin(_STAGE, request.recipe.steps, 0)
        assert process.stdout is not None, "it was opened with a pipe"
        for line in process.stdout:
            _show(json.loads(line), display)
    if process.returncode != 0:
        raise KETrainingError(
            "The KE was not trained; the reason stands above. The same command goes on where it was."
        )


@contextmanager
def _child(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The trainer's process. Told to stop when we are, and waited for: it writes its checkpoint then."""
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=dying_with_me(signal.SIGTERM),
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


def _show(event: dict[str, Any], display: Display) -> None:
    if event["event"] == "step":
        display.reach(_STAGE, event["step"], f"loss {event['loss']:.3f}")
    elif event["event"] == "look":
        held_out = ", ".join(f"{form} {nll:.3f}" for form, nll in event["nll"].items())
        display.say(f"step {event['step']}, held-out nats per answer token: {held_out}")
