"""Asking every question in every row, and scoring the accepted answers under the same prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from km_registry.prompts import ChatTokenizer, answer_messages, encode, passages_context
from server.evaluation.api import Api, RefusedError
from server.evaluation.documents import EvalDocument, EvaluationError, Question
from server.evaluation.metrics import mean_nll
from server.evaluation.progress import Display
from server.evaluation.rows import Plan, Row
from server.evaluation.state import State
from server.evaluation.training import carrier
from server.evaluation.workers import each
from server.modes import Mode

#: Longest answer, in tokens.
MAX_TOKENS = 64
#: Questions in flight at a time.
_TOGETHER = 8
_STAGE = "answers"
_BASE = "base"
_KEPT = ("answer", "mode", "ke_id", "prompt_tokens", "completion_tokens", "milliseconds")


@dataclass(frozen=True, slots=True)
class _Task:
    row: Row
    document: EvalDocument
    number: int

    @property
    def question(self) -> Question:
        return self.document.questions[self.number]


def others(documents: Sequence[EvalDocument], seed: int) -> dict[str, str]:
    """For every document another one, each once: one random cycle through all of them (Sattolo).

    Raises:
        EvaluationError: there is no other document.
    """
    if len(documents) < 2:
        raise EvaluationError(
            "A row with `wrong` asks the KM of another document, so it needs two. Raise --documents."
        )
    ids = [document.id for document in documents]
    cycle = list(ids)
    random.Random(seed).shuffle(cycle)  # noqa: S311  a draw that can be repeated is wanted
    return dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))


class Asking:
    """The questions of one evaluation. `missing` is why a row has no answers for a document."""

    def __init__(
        self,
        api: Api,
        state: State,
        plan: Plan,
        documents: Sequence[EvalDocument],
        tokenizer: ChatTokenizer,
        display: Display,
        *,
        seed: int,
    ) -> None:
        self._api = api
        self._state = state
        self._plan = plan
        self._documents = documents
        self._tokenizer = tokenizer
        self._display = display
        wrong = any(row.wrong for row in plan.rows)
        self._others = others(documents, seed) if wrong else {}

    def missing(self, row: Row, document: EvalDocument) -> str | None:
        """Why the row cannot be asked about the document; None if it can."""
        if row.source is None:
            return None
        asked = self._asked_document(row, document)
        outcome = self._state.trainings[row.source, asked]
        if outcome["state"] == "succeeded":
            return None
        return f"the training of {row.source} on {asked} {outcome['state']}: {outcome['reason']}"

    async def ask(self) -> None:
        """Ask what is not asked yet, row by row."""
        tasks = [
            _Task(row, document, number)
            for row in self._plan.rows
            for document in self._documents
            if self.missing(row, document) is None
            for number in range(len(document.questions))
        ]
        left = [task for task in tasks if self._key(task) not in self._state.answers]
        self._display.begin(_STAGE, len(tasks), len(tasks) - len(left))
        await each(left, self._ask, together=_TOGETHER)

    def _key(self, task: _Task) -> tuple[str, str, int]:
        return task.row.name, task.document.id, task.number

    def _asked_document(self, row: Row, document: EvalDocument) -> str:
        return self._others[document.id] if row.wrong else document.id

    async def _ask(self, task: _Task) -> None:
        try:
            outcome = await self._outcome(task)
        except RefusedError as error:
            outcome = {"missing": str(error)}
        self._state.add_answer(*self._key(task), **outcome)
        self._display.advance(_STAGE, f"{task.row.name} · {task.document.id}")

    async def _outcome(self, task: _Task) -> dict[str, Any]:
        row = task.row
        owner = row.source or carrier(self._plan).name
        user = self._state.users[owner]
        document_id = self._state.uploads[owner, self._asked_document(row, task.document)]
        sent: dict[str, Any] = {"document_id": document_id, "question": task.question.text}
        sent |= {"mode": row.mode, "max_tokens": MAX_TOKENS, "temperature": 0}
        sent |= {name: value for name, value in (("k", row.k), ("ke", row.ke)) if value is not None}
        answer = await self._api.answer(user, sent)
        kept = {name: answer[name] for name in _KEPT}
        prompt = self._prompt(task, answer)
        if len(prompt) != answer["prompt_tokens"]:
            raise EvaluationError(
                f"The server's prompt for {task.question.text!r} has {answer['prompt_tokens']} tokens, and "
                f"the one to score with has {len(prompt)}. Name the model that is served: --base-model or "
                "KM_BASE_MODEL."
            )
        model = document_id if answer["km_id"] else _BASE
        if answer["ke_id"]:
            model = f"{model}+{answer['ke_id']}"
        return kept | await self._nlls(user, model, prompt, task.question)

    def _prompt(self, task: _Task, answer: dict[str, Any]) -> list[int]:
        """The prompt that was answered, to score under: the mode and the passages are in the answer."""
        context = None
        if answer["mode"] == Mode.ICL:
            context = task.document.text
        elif answer["passages"]:
            context = passages_context([passage["text"] for passage in answer["passages"]])
        messages = answer_messages(task.question.text, context=context, title=task.document.title)
        return encode(self._tokenizer, messages)

    async def _nlls(
        self, user: str, model: str, prompt: list[int], question: Question
    ) -> dict[str, list[float]]:
        """Nats per token of each reference, and of each choice where there are some."""
        texts = question.choices or question.references
        tokens = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        scored = await self._api.logprobs(user, model, [prompt + one for one in tokens])
        nlls = []
        for logprobs, one in zip(scored, tokens, strict=True):
            # None stands only at a prompt's first token, which is none of the answer's.
            nlls.append(mean_nll([float(value) for value in logprobs[-len(one) :] if value is not None]))
        return {"choice_nlls": nlls} if question.choices else {"reference_nlls": nlls}
