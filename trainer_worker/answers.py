"""What a KE learns from: answers under the prompts that the server asks in, drawn step by step.

Everything drawn depends on the seed and the step's number alone, so a training goes on where it was.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from km_registry.ke_recipe import KEDocument, KEQuestion, KERecipe
from km_registry.prompts import answer_messages, encode, passages_context
from trainer_worker.examples import Example


class Form(StrEnum):
    """What stands in the prompt beside the question."""

    CLOSED = "closed"
    PASSAGES = "passages"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as token ids: one example, or with choices one for each, the right one at `gold`."""

    examples: tuple[Example, ...]
    gold: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The questions of one document in a step."""

    document: KEDocument
    asked: tuple[Asked, ...]

    @property
    def examples(self) -> list[Example]:
        """All its examples, question by question."""
        return [example for one in self.asked for example in one.examples]


class Answers:
    """The documents a KE is trained on, as batches."""

    def __init__(self, documents: Sequence[KEDocument], tokenizer: Any, recipe: KERecipe) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._recipe = recipe

    def batches(self, step: int) -> list[Batch]:
        """What the step (from 0) learns from: every document is asked once before any is asked again, and so
        is every question of a document."""
        recipe, count = self._recipe, len(self._documents)
        together = min(recipe.documents_per_step, count)
        drawn: list[Batch] = []
        for turn in range(step * together, (step + 1) * together):
            visit, place = divmod(turn, count)
            index = _shuffled(range(count), f"{recipe.seed} documents {visit}")[place]
            drawn.append(self._batch(index, visit, recipe.batch_tokens // together))
        return drawn

    def heldout(self, form: Form) -> list[Batch]:
        """The first questions of every document in one form; documents without passages have none."""
        found = []
        for document in self._documents:
            questions = document.questions[: self._recipe.heldout_questions]
            if form is not Form.CLOSED:
                questions = tuple(one for one in questions if one.passages)
            asked = tuple(self.asked(document, one, one.passages, form) for one in questions)
            if asked:
                found.append(Batch(document, asked))
        return found

    def asked(
        self, document: KEDocument, question: KEQuestion, passages: Sequence[str], form: Form, answer: int = 0
    ) -> Asked:
        """The question with its answer of that number, or with each of its choices."""
        context = None if form is Form.CLOSED else passages_context(passages)
        messages = answer_messages(question.question, context=context, title=document.title)
        prompt = tuple(encode(self._tokenizer, messages))
        texts = question.choices or (question.answers[answer % len(question.answers)],)
        examples = tuple(Example(form, 0, (), prompt, self._target(text)) for text in texts)
        return Asked(examples, question.gold)

    def _target(self, text: str) -> tuple[int, ...]:
        ids = self._tokenizer.encode(text.strip(), add_special_tokens=False)
        return (*ids, self._tokenizer.eos_token_id)

    def _batch(self, index: int, visit: int, tokens: int) -> Batch:
        """Questions of the document in its own shuffled round, until there are that many tokens."""
        document, seed = self._documents[index], self._recipe.seed
        count = len(document.questions)
        draw = random.Random(f"{seed} batch {index} {visit}")  # noqa: S311  a draw that can be repeated
        # Each visit begins at another place of the round, so that all questions have their turn.
        order = _shuffled(range(count), f"{seed} questions {index}")
        start = visit * max(1, count // 3)
        asked: list[Asked] = []
        taken = 0
        for number in range(count):
            question = document.questions[order[(start + number) % count]]
            passages, form = self._passages(index, question, draw)
            one = self.asked(document, question, passages, form, answer=visit)
            size = sum(len(example.student_input) for example in one.examples)
            if asked and taken + size > tokens:
                break
            asked.append(one)
            taken += size
        return Batch(document, tuple(asked))

    def _passages(self, index: int, question: KEQuestion, draw: random.Random) -> tuple[Sequence[str], Form]:
        with_passages = draw.random() < self._recipe.passages_share
        wrong, other = draw.random() < self._recipe.wrong_share, draw.randrange(len(self._documents))
        if not with_passages or not question.passages:
            return (), Form.CLOSED
        if wrong and other != index:
            others = draw.choice(self._documents[other].questions).passages
            return (others, Form.WRONG) if others else ((), Form.CLOSED)
        return question.passages, Form.PASSAGES


def _shuffled(items: Sequence[int], seed: str) -> list[int]:
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)  # noqa: S311  a draw that can be repeated is wanted
    return shuffled
