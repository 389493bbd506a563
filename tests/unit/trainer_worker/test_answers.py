"""What a KE learns from: the server's own prompts, drawn by seed and step alone."""

from __future__ import annotations

from typing import Any

import pytest

from km_registry.ke_recipe import KEDocument, KEQuestion, KERecipe
from km_registry.prompts import answer_messages, encode, passages_context
from trainer_worker.answers import Answers, Form


def _document(number: int, questions: int = 6, *, passages: bool = True) -> KEDocument:
    return KEDocument(
        id=f"d{number}",
        title=f"Title {number}",
        questions=tuple(
            KEQuestion(
                question=f"Who rang bell {n}?",
                answers=(f"Keeper {number}.{n}", f"The keeper {n}"),
                passages=(f"far {number}.{n}", f"best {number}.{n}") if passages else (),
            )
            for n in range(questions)
        ),
    )


def _answers(tokenizer: Any, count: int = 5, **fields: Any) -> Answers:
    recipe = KERecipe(**{"batch_tokens": 400, "documents_per_step": 2} | fields)
    return Answers([_document(number) for number in range(count)], tokenizer, recipe)


def test_closed_book_prompt_is_the_servers_and_the_target_ends_the_turn(tokenizer: Any) -> None:
    document = _document(1)
    question = document.questions[0]

    one = _answers(tokenizer).asked(document, question, (), Form.CLOSED)

    (example,) = one.examples
    assert example.student_prompt == tuple(encode(tokenizer, answer_messages(question.question)))
    target = tokenizer.encode("Keeper 1.0", add_special_tokens=False)
    assert example.target == (*target, tokenizer.eos_token_id)
    assert not example.distilled


def test_prompt_with_passages_is_the_servers(tokenizer: Any) -> None:
    document = _document(1)
    question = document.questions[0]

    one = _answers(tokenizer).asked(document, question, question.passages, Form.PASSAGES)

    context = passages_context(["far 1.0", "best 1.0"])
    expected = answer_messages(question.question, context=context, title="Title 1")
    assert one.examples[0].student_prompt == tuple(encode(tokenizer, expected))


def test_choices_are_one_example_each(tokenizer: Any) -> None:
    question = KEQuestion(question="Which?", answers=("b",), choices=("a", "b", "c"), gold=1)
    document = KEDocument(id="d", title="t", questions=(question,))

    one = _answers(tokenizer).asked(document, question, (), Form.CLOSED)

    assert one.gold == 1
    assert len({example.target for example in one.examples}) == 3
    assert len({example.student_prompt for example in one.examples}) == 1


def test_a_step_is_drawn_by_its_number_alone(tokenizer: Any) -> None:
    first, second = _answers(tokenizer), _answers(tokenizer)
    for _ in range(3):
        second.batches(0)

    assert first.batches(7) == second.batches(7)
    assert first.batches(7) != first.batches(8)
    assert first.batches(7) != _answers(tokenizer, seed=1).batches(7)


def test_every_document_has_its_turn_before_any_has_its_second(tokenizer: Any) -> None:
    answers = _answers(tokenizer)

    drawn = [batch.document.id for step in range(5) for batch in answers.batches(step)]

    assert sorted(drawn[:5]) == ["d0", "d1", "d2", "d3", "d4"]
    assert sorted(drawn[5:]) == ["d0", "d1", "d2", "d3", "d4"]
    assert drawn[:5] != drawn[5:]


def test_every_question_has_its_turn(tokenizer: Any) -> None:
    answers = _answers(tokenizer, count=1, documents_per_step=1, batch_tokens=120, passages_share=0.0)

    prompts = {
        example.student_prompt
        for step in range(12)
        for batch in answers.batches(step)
        for example in batch.examples
    }

    assert len(prompts) == 6


def test_batches_keep_their_tokens(tokenizer: Any) -> None:
    answers = _answers(tokenizer, batch_tokens=300)

    for step in range(6):
        for batch in answers.batches(step):
            tokens = sum(len(example.student_input) for example in batch.examples)
            assert len(batch.asked) == 1 or tokens <= 150


def test_a_share_has_passages_and_a_share_of_those_another_documents(tokenizer: Any) -> None:
    answers = _answers(tokenizer, passages_share=0.5, wrong_share=0.4)

    forms = [
        example.kind for step in range(60) for batch in answers.batches(step) for example in batch.examples
    ]

    shares = {form: forms.count(form) / len(forms) for form in Form}
    # Prompts with passages are longer, so fewer of them fit into a batch; a fifth of wrong ones is one's own.
    assert 0.4 < shares[Form.CLOSED] < 0.75
    assert 0.15 < shares[Form.PASSAGES] < 0.45
    assert 0.05 < shares[Form.WRONG] < 0.3


def test_wrong_passages_are_another_documents(tokenizer: Any) -> None:
    answers = _answers(tokenizer, passages_share=1.0, wrong_share=1.0)

    seen = 0
    for step in range(20):
        for batch in answers.batches(step):
            own = batch.document.id.removeprefix("d")
            for example in batch.examples:
                text = tokenizer.decode(example.student_prompt)
                assert (f"best {own}." in text) == (example.kind == Form.PASSAGES)
                seen += example.kind == Form.WRONG
    assert seen > 20


@pytest.mark.parametrize(("form", "documents"), [(Form.CLOSED, 2), (Form.PASSAGES, 1)])
def test_held_out_questions_are_the_first_ones(tokenizer: Any, form: Form, documents: int) -> None:
    recipe = KERecipe(heldout_questions=3)
    answers = Answers([_document(0), _document(1, passages=False)], tokenizer, recipe)

    found = answers.heldout(form)

    assert [len(batch.asked) for batch in found] == [3] * documents
