"""Whole evaluations over HTTP against the server's app, its engine scripted."""

from __future__ import annotations

import asyncio
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from km_registry.base_model import BaseModel
from km_registry.prompts import answer_messages, render
from server.engine.scripted import ScriptedEngine
from server.evaluation import run
from server.evaluation.documents import EvaluationError
from server.evaluation.results import Results
from server.evaluation.run import Evaluation, command
from tests.unit.server.conftest import WordTokenizer
from tests.unit.server.evaluation.conftest import DOCUMENTS, Harness, TrainingQueue

TWO = DOCUMENTS[:2]


async def test_every_row_answers_every_question(harness: Harness) -> None:
    found, kept = await harness.measure("base", "icl", "lm", "sdcd", "wrong")
    assert [one.row.name for one in found.rows] == ["base", "icl", "lm", "sdcd", "wrong"]
    assert len(kept.answers) == 5 * found.questions == 5 * 4
    assert all(not one.missing for one in found.rows)
    assert all(one.estimates["rouge_l"].count == 3 for one in found.rows)


async def test_every_document_is_trained_once_for_each_training_row_with_its_recipe(
    harness: Harness, queue: TrainingQueue
) -> None:
    await harness.measure("base", "lm", "sdcd", documents=TWO, recipe={"steps": 9})
    assert [(title, recipe["objective"], recipe["steps"]) for title, recipe in queue.trained] == [
        ("Harbour", "lm", 9),
        ("Bell", "lm", 9),
        ("Harbour", "sdcd", 9),
        ("Bell", "sdcd", 9),
    ]


async def test_rows_of_kms_are_answered_by_their_own(harness: Harness, engine: ScriptedEngine) -> None:
    _, kept = await harness.measure("base", "icl", "lm", "sdcd", documents=TWO)
    kms = {key: outcome["km_id"] for key, outcome in kept.trainings.items()}
    assert len(set(kms.values())) == 4
    for row in ("lm", "sdcd"):
        for document in TWO:
            assert kept.answers[row, document.id, 0]["answer"].startswith(kms[row, document.id])
    assert kept.answers["base", "bell", 0]["answer"].startswith("base")
    assert kept.answers["icl", "bell", 0]["answer"].startswith("base")
    assert kept.answers["icl", "bell", 0]["prompt_tokens"] > kept.answers["base", "bell", 0]["prompt_tokens"]


async def test_the_wrong_row_asks_another_documents_km_the_same_question(harness: Harness) -> None:
    _, kept = await harness.measure("sdcd", "wrong")
    asked = {}
    for document in DOCUMENTS:
        answer = kept.answers["wrong", document.id, 0]
        assert answer["prompt_tokens"] == kept.answers["sdcd", document.id, 0]["prompt_tokens"]
        (asked[document.id],) = (
            other
            for (_, other), outcome in kept.trainings.items()
            if answer["answer"].startswith(outcome["km_id"])
        )
    assert set(asked.values()) == set(asked)
    assert all(asked_of != document for document, asked_of in asked.items())


async def test_nll_is_of_the_likeliest_reference_under_the_prompt_that_answers(
    harness: Harness, engine: ScriptedEngine, tokenizer: WordTokenizer
) -> None:
    found, _ = await harness.measure("icl", documents=TWO)

    def nll(text: str) -> float:
        # The scripted engine's log-probability of a token is −(1 + id mod 8)/8.
        tokens = tokenizer.encode(text)
        return sum((1 + token % 8) / 8 for token in tokens) / len(tokens)

    (icl,) = found.rows
    first, second = (min(nll(text) for text in one.references) for one in DOCUMENTS[0].questions)
    expected = {"harbour": (first + second) / 2, "bell": min(nll("Maren"), nll("the Maren"))}
    assert icl.values["nll"] == pytest.approx(expected)
    scored = [request.prompt_token_ids for request in engine.requests if request.prompt_logprobs]
    prompt = answer_messages("What is it called?", context=DOCUMENTS[1].text, title="Bell")
    assert tuple(tokenizer.encode(render(tokenizer, prompt)) + tokenizer.encode("Maren")) in scored


async def test_choices_are_scored_and_not_shown(harness: Harness, tokenizer: WordTokenizer) -> None:
    found, kept = await harness.measure("base", documents=DOCUMENTS[2:])
    nlls = kept.answers["base", "shop", 0]["choice_nlls"]
    assert len(nlls) == 3
    (base,) = found.rows
    assert base.values["nll"] == {"shop": nlls[1]}
    assert base.values["accuracy"] == {"shop": float(min(nlls) == nlls[1])}


async def test_recovered_is_the_kms_own(harness: Harness) -> None:
    found, _ = await harness.measure("base", "sdcd", "wrong", documents=TWO)
    base, sdcd, wrong = found.rows
    assert sdcd.values["recovered"] == {"harbour": 0.8, "bell": 0.6}
    assert not base.values["recovered"]
    assert not wrong.values["recovered"]


async def test_differences_of_the_rows_that_are_there(harness: Harness) -> None:
    found, _ = await harness.measure("base", "sdcd")
    (only,) = found.differences
    assert (only.first, only.second) == ("sdcd", "base")
    base, sdcd = found.rows
    gap = sdcd.estimates["nll"].mean - base.estimates["nll"].mean
    assert only.estimates["nll"].mean == pytest.approx(gap)


async def test_a_failed_training_is_missing_with_its_reason(harness: Harness, queue: TrainingQueue) -> None:
    queue.failing["Bell"] = "loss was not finite at step 3"
    found, kept = await harness.measure("base", "sdcd")
    base, sdcd = found.rows
    assert not base.missing
    assert sdcd.missing == {"bell": "the training of sdcd on bell failed: loss was not finite at step 3"}
    assert sdcd.estimates["rouge_l"].count == 2
    assert ("sdcd", "bell", 0) not in kept.answers
    assert "loss was not finite" in harness.said.getvalue()


async def test_retry_trains_again_what_has_failed_and_nothing_else(
    harness: Harness, queue: TrainingQueue
) -> None:
    queue.failing["Bell"] = "no memory"
    await harness.measure("sdcd")
    queue.failing.clear()
    still, _ = await harness.measure("sdcd")
    assert still.rows[0].missing
    found, _ = await harness.measure("sdcd", retry=True)
    assert not found.rows[0].missing
    assert [title for title, _ in queue.trained] == ["Harbour", "Bell", "Shop", "Bell"]


async def test_what_the_server_refuses_is_missing(harness: Harness) -> None:
    long = replace(DOCUMENTS[0], id="long", title="Long", text="The harbour is long. " * 20)
    found, kept = await harness.measure("base", "icl", documents=(*TWO, long))
    _, icl = found.rows
    assert list(icl.missing) == ["long"]
    assert "HTTP 422" in icl.missing["long"]
    assert "missing" in kept.answers["icl", "long", 1]


async def test_passages_are_in_the_prompt_that_is_scored(
    harness: Harness, engine: ScriptedEngine, tokenizer: WordTokenizer
) -> None:
    found, kept = await harness.measure("rag-1", "sdcd", "km+rag-1", documents=TWO)
    assert not any(one.missing for one in found.rows)
    rag, _, both = found.rows
    assert both.values["prompt_tokens"] == rag.values["prompt_tokens"]
    passage = answer_messages("What is it called?", context=DOCUMENTS[1].text, title="Bell")
    prompt = tuple(tokenizer.encode(render(tokenizer, passage)) + tokenizer.encode("Maren"))
    adapters = [request.adapter for request in engine.requests if request.prompt_token_ids == prompt]
    assert [adapter and adapter.name for adapter in adapters] == [
        None,
        kept.trainings["sdcd", "bell"]["km_id"],
    ]


async def test_auto_is_scored_as_it_answered(harness: Harness) -> None:
    _, kept = await harness.measure("sdcd", "auto", documents=TWO)
    answer = kept.answers["auto", "bell", 0]
    assert answer["mode"] == "km+rag"
    assert answer["answer"].startswith(kept.trainings["sdcd", "bell"]["km_id"])
    assert len(answer["reference_nlls"]) == 2


async def test_more_passages_than_a_document_has_are_missing_with_the_reason(harness: Harness) -> None:
    found, _ = await harness.measure("base", "rag-8")
    base, rag = found.rows
    assert not base.missing
    assert set(rag.missing) == {"harbour", "bell", "shop"}
    assert "the document has 1 passages" in rag.missing["bell"]


async def test_a_second_run_asks_and_trains_nothing_again(
    harness: Harness, engine: ScriptedEngine, queue: TrainingQueue
) -> None:
    first, _ = await harness.measure("base", "sdcd")
    asked = len(engine.requests)
    second, _ = await harness.measure("base", "sdcd")
    assert len(engine.requests) == asked
    assert len(queue.trained) == 3
    assert second == first


async def test_rows_can_be_added_later(harness: Harness, queue: TrainingQueue) -> None:
    await harness.measure("base", "sdcd", documents=TWO)
    found, _ = await harness.measure("lm", "base", "sdcd", documents=TWO)
    assert [one.row.name for one in found.rows] == ["lm", "base", "sdcd"]
    assert not any(one.missing for one in found.rows)
    assert len(queue.trained) == 4


async def test_a_run_that_was_stopped_goes_on(harness: Harness, engine: ScriptedEngine) -> None:
    engine.hold()
    running = asyncio.create_task(harness.measure("base", "sdcd"))
    await engine.until_asked(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    engine.release()
    found, kept = await harness.measure("base", "sdcd")
    assert len(kept.answers) == 8
    assert not any(one.missing for one in found.rows)


async def test_without_training_rows_documents_are_uploaded_to_be_asked(
    harness: Harness, queue: TrainingQueue
) -> None:
    found, kept = await harness.measure("base", "icl", documents=TWO)
    assert [recipe["steps"] for _, recipe in queue.trained] == [1, 1]
    assert not kept.trainings
    assert found.rows[1].estimates["rouge_l"].count == 2


async def test_a_recipe_that_is_refused_ends_the_evaluation_with_its_field(harness: Harness) -> None:
    with pytest.raises(EvaluationError, match=r"row sdcd cannot be trained on harbour.*rank: 99.*--fresh"):
        await harness.measure("sdcd", recipe={"rank": 99})


async def test_a_key_that_is_no_administrators(harness: Harness) -> None:
    harness.admin_key = "km_nobody"
    with pytest.raises(EvaluationError, match="needs an administrator's key"):
        await harness.measure("base")


async def test_a_tokenizer_of_another_model_is_noticed(harness: Harness) -> None:
    harness.tokenizer = _Characters()
    with pytest.raises(EvaluationError, match="Name the model that is served"):
        await harness.measure("base")


async def test_an_engine_that_fails_ends_the_evaluation(harness: Harness, engine: ScriptedEngine) -> None:
    engine.fail("The engine has died.")
    with pytest.raises(EvaluationError, match=r"The engine has died.*HTTP 503"):
        await harness.measure("base")


async def test_wrong_needs_another_document(harness: Harness) -> None:
    with pytest.raises(EvaluationError, match="needs two"):
        await harness.measure("sdcd", "wrong", documents=DOCUMENTS[:1])


class _Characters(WordTokenizer):
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())


# --- around it ---------------------------------------------------------------------------------------------


def test_the_command_names_no_path_and_no_key(tmp_path: Path) -> None:
    evaluation = Evaluation(
        tmp_path / "fairytaleqa",
        "fairytaleqa",
        ("base", "sdcd"),
        tmp_path,
        "ten",
        recipe={"steps": 60},
        documents=10,
        server="http://km",
        key="km_secret",
    )
    assert command(evaluation) == (
        "km eval --data fairytaleqa --format fairytaleqa --rows base,sdcd --recipe '{\"steps\": 60}' "
        "--documents 10 --split val --seed 0 --name ten"
    )


@pytest.fixture
async def given(harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Evaluation:
    """An evaluation of a JSONL file whose server is the app; `main` runs in a thread beside it."""
    model = BaseModel(tmp_path, "test", "f" * 64)
    monkeypatch.setattr(run, "base_and_tokenizer", lambda *_: (model, harness.tokenizer))
    loop = asyncio.get_running_loop()

    async def measure_at(_: str, *parts: Any) -> Results:
        measured = asyncio.run_coroutine_threadsafe(run.measure(harness.http, *parts), loop)
        return await asyncio.wrap_future(measured)

    monkeypatch.setattr(run, "_measure_at", measure_at)
    rows = ("base", "icl", "sdcd")
    return Evaluation(
        _write(tmp_path / "data.jsonl"),
        "jsonl",
        rows,
        tmp_path / "out",
        "test",
        server="http://km",
        key=harness.admin_key,
        save=tmp_path / "saved" / "quality.json",
    )


async def _main(evaluation: Evaluation) -> int:
    return await asyncio.to_thread(run.main, evaluation)


def _write(file: Path) -> Path:
    records = [
        {
            "id": one.id,
            "title": one.title,
            "text": one.text,
            "questions": [
                {"question": question.text, "answers": question.references} for question in one.questions
            ],
        }
        for one in DOCUMENTS
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


async def test_it_writes_the_report_and_ends_with_one_json_line(
    given: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _main(given) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert list(last["rows"]) == ["base", "icl", "sdcd"]
    assert (last["documents"], last["questions"], last["seed"]) == (3, 4, 0)
    full = json.loads((given.out / "report.json").read_text(encoding="utf-8"))
    assert full["rows"]["sdcd"]["nll"]["mean"] == pytest.approx(last["rows"]["sdcd"]["nll"], abs=1e-4)
    assert full["rows"]["sdcd"]["recipe"] == {}
    assert full["versions"]["rouge-score"]
    assert given.save is not None
    assert json.loads(given.save.read_text(encoding="utf-8")) == full
    assert (given.out / "report.md").read_text(encoding="utf-8").startswith("# Evaluation: test\n")
    assert (given.out / "quality.png").read_bytes().startswith(b"\x89PNG")


async def test_keys_are_for_their_owner_alone_and_in_no_report(given: Evaluation) -> None:
    await _main(given)
    assert stat.S_IMODE((given.out / "keys.json").stat().st_mode) == 0o600
    keys = json.loads((given.out / "keys.json").read_text())
    secrets = [keys["admin_key"], *keys["users"].values()]
    assert len(secrets) == 2
    written = "".join(path.read_text() for path in given.out.glob("*") if path.suffix in (".md", ".json"))
    assert all(written.count(secret) == 1 for secret in secrets)


async def test_other_arguments_are_refused_by_name(
    given: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _main(given) == 0
    capsys.readouterr()
    assert await _main(replace(given, seed=1)) == 1
    assert "seed was 0 and is 1" in capsys.readouterr().out
    assert await _main(replace(given, seed=1, fresh=True)) == 0


async def test_a_missing_answer_is_told_and_is_no_success(
    given: Evaluation, queue: TrainingQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.failing["Bell"] = "no memory"
    assert await _main(given) == 1
    told = capsys.readouterr().out
    assert "- **sdcd**, bell: the training of sdcd on bell failed: no memory" in told
    assert json.loads(told.strip().splitlines()[-1])["rows"]["sdcd"]["missing"] == 1


async def test_ctrl_c_says_how_to_go_on(
    given: Evaluation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(run, "_measure_at", stopped)
        assert await _main(given) == 130
    assert "The same command goes on" in capsys.readouterr().out
    assert await _main(given) == 0


async def test_wrong_data_are_one_line(given: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    assert await _main(replace(given, data=Path("nowhere.jsonl"))) == 1
    assert capsys.readouterr().out == "km: nowhere.jsonl is not there. Correct --data.\n"
