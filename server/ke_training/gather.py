"""What a KE is trained on: documents with their KMs, questions with their passages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from km_registry.config import RegistrySettings
from km_registry.ke_recipe import KEDocument, KEQuestion
from km_registry.registry import Registry
from km_registry.types import KM
from server.evaluation.api import Api, RefusedError
from server.evaluation.documents import EvalDocument, Question
from server.evaluation.progress import Display
from server.evaluation.rows import Row
from server.evaluation.state import State
from server.evaluation.workers import each
from server.modes import Mode

_STAGE = "passages"
#: Questions whose passages are looked up at a time.
_TOGETHER = 4


class Passages:
    """The passages that the server finds for every question, kept in the state as answers of a row."""

    def __init__(self, api: Api, state: State, row: Row, *, k: int | None) -> None:
        self._api = api
        self._state = state
        self._row = row
        self._k = k

    async def find(self, documents: Sequence[EvalDocument], display: Display) -> None:
        """Look up what is not there yet."""
        wanted = [(one, number) for one in documents for number in range(len(one.questions))]
        left = [(one, n) for one, n in wanted if (_STAGE, one.id, n) not in self._state.answers]
        display.begin(_STAGE, len(wanted), len(wanted) - len(left))

        async def look_up(asked: tuple[EvalDocument, int]) -> None:
            document, number = asked
            found = await self._of(document, document.questions[number])
            self._state.add_answer(_STAGE, document.id, number, passages=found)
            display.advance(_STAGE, document.id)

        await each(left, look_up, together=_TOGETHER)

    def of(self, document: EvalDocument, number: int) -> tuple[str, ...]:
        """The question's passages in the order of the prompt."""
        return tuple(self._state.answers[_STAGE, document.id, number]["passages"])

    async def _of(self, document: EvalDocument, question: Question) -> list[str]:
        user, uploaded = self._state.users[self._row.name], self._state.uploads[self._row.name, document.id]
        asked = {"document_id": uploaded, "question": question.text, "mode": Mode.RAG, "max_tokens": 1}
        try:
            answer = await self._api.answer(user, asked | ({"k": self._k} if self._k else {}))
        except RefusedError as error:
            # The document has fewer than k; then as many as the server takes by itself.
            if self._k is None or error.status != 422:
                raise
            answer = await self._api.answer(user, asked)
        return [passage["text"] for passage in answer["passages"]]


def ke_documents(
    documents: Sequence[EvalDocument], state: State, row: Row, passages: Passages, data_dir: Path
) -> list[KEDocument]:
    """The documents whose KMs are trained, with the directories that hold those."""
    # Where the evaluation's own server keeps its records, whatever the environment says of another's.
    with Registry.open(RegistrySettings(data_dir=data_dir, database_url=None, store_url=None)) as registry:
        return [
            _ke_document(document, registry.km_of(state.uploads[row.name, document.id]), passages)
            for document in documents
            if state.trainings[row.name, document.id]["state"] == "succeeded"
        ]


def _ke_document(document: EvalDocument, km: KM | None, passages: Passages) -> KEDocument:
    questions = tuple(
        KEQuestion(
            question=one.text,
            answers=one.references,
            choices=one.choices,
            gold=one.gold,
            passages=passages.of(document, number),
        )
        for number, one in enumerate(document.questions)
    )
    path = str(Path(km.path).resolve()) if km else None
    return KEDocument(id=document.id, title=document.title, km=path, questions=questions)
