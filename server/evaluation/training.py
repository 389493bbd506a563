"""Uploading every document for every training row, and waiting until their trainings are over."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from server.evaluation.api import Api, RefusedError
from server.evaluation.documents import EvalDocument, EvaluationError
from server.evaluation.progress import Display
from server.evaluation.rows import Plan, Row
from server.evaluation.state import State
from server.evaluation.workers import each
from server.training_display import note

#: Where no row trains, documents are uploaded for this one so that they can be asked; nobody waits for it.
CARRIER = Row(name="documents", recipe={"kinds": ["repeat"], "steps": 1, "evaluations": 1})
_STAGE = "trainings"
#: Trainings that are followed at a time; the others wait in the server's queue, in the same order.
_FOLLOWED = 16


def carrier(plan: Plan) -> Row:
    """The row whose documents are asked by the rows that use no KM."""
    return plan.training[0] if plan.training else CARRIER


class Trainings:
    """The trainings of one evaluation."""

    def __init__(
        self, api: Api, state: State, plan: Plan, documents: Sequence[EvalDocument], display: Display
    ) -> None:
        self._api = api
        self._state = state
        self._plan = plan
        self._documents = documents
        self._display = display

    async def upload(self, name: str) -> None:
        """Upload what is not uploaded yet, all at once, so that the worker can train several together. Each
        row is a user: the same user's same text would be the same document.

        Raises:
            EvaluationError: the server takes a document or a recipe not as it is.
        """
        for row in self._plan.training or (CARRIER,):
            await self._upload_row(name, row)

    async def retry(self) -> None:
        """Train again what has failed, and ask again what was refused."""
        for row, document in self._state.forget_failures():
            await self._api.retrain(self._state.users[row], self._state.uploads[row, document])

    async def wait(self) -> None:
        """Wait until every training is over. One that failed is noted, no more."""
        wanted = [(row.name, document.id) for row in self._plan.training for document in self._documents]
        left = [training for training in wanted if training not in self._state.trainings]
        if wanted:
            self._display.begin(_STAGE, len(wanted), len(wanted) - len(left))
        await each(left, self._follow, together=_FOLLOWED)

    async def _upload_row(self, name: str, row: Row) -> None:
        if row.name not in self._state.users:
            # Names are unique, and an evaluation that begins anew makes its users anew.
            user = f"eval {name} {row.name} {secrets.token_hex(4)}"
            key = await self._api.create_user(self._admin_key(), user)
            self._state.keep_keys(**{row.name: key})
        for document in self._documents:
            if (row.name, document.id) in self._state.uploads:
                continue
            try:
                document_id = await self._api.upload(
                    self._state.users[row.name], document.title, document.text, row.recipe or {}
                )
            except RefusedError as error:
                raise EvaluationError(
                    f"The row {row.name} cannot be trained on {document.id}: {error} Correct --recipe or "
                    "--definitions, or leave the row out, and begin anew with --fresh."
                ) from error
            self._state.add_upload(row.name, document.id, document_id)

    def _admin_key(self) -> str:
        if self._state.admin_key is None:
            raise EvaluationError(
                f"The administrator's key of this evaluation's server is not in {self._state.directory}. "
                "Begin anew with --fresh."
            )
        return self._state.admin_key

    async def _follow(self, training: tuple[str, str]) -> None:
        row, document = training
        key, document_id = self._state.users[row], self._state.uploads[training]
        async for event in self._api.follow(key, document_id):
            if event.kind == "progress":
                where = f"{row} · {document} · {event.data['stage']} {note(event.data)}"
                self._display.note(_STAGE, where)
        outcome = _outcome(await self._api.detail(key, document_id))
        self._state.add_training(row, document, **outcome)
        self._display.say(f"{row} · {document}: {_told(outcome)}")
        self._display.advance(_STAGE)


def _outcome(detail: dict[str, Any]) -> dict[str, Any]:
    job, km = detail["job"], detail["km"]
    outcome = {"state": job["state"], "seconds": _seconds(job), "attempt": job["attempt"]}
    if job["state"] != "succeeded" or km is None:
        return outcome | {"reason": job["error"] or f"the training is {job['state']}"}
    return outcome | {"km_id": km["id"], "metrics": km["metrics"]}


def _seconds(job: dict[str, Any]) -> float | None:
    """From the training's beginning to its end, in seconds."""
    if not job["started_at"] or not job["finished_at"]:
        return None
    began, ended = (datetime.fromisoformat(job[moment]) for moment in ("started_at", "finished_at"))
    return round((ended - began).total_seconds(), 1)


def _told(outcome: dict[str, Any]) -> str:
    if "reason" in outcome:
        return f"{outcome['state']} ({outcome['reason']})"
    recovered = outcome["metrics"].get("recovered")
    measured = "" if recovered is None else f"recovered {recovered:.2f}, "
    return f"{measured}{outcome['seconds']} s"
