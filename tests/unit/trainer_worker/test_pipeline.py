"""One document's whole path, from a claimed job to a published KM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from km_registry import artifacts
from km_registry.config import GeneratorEndpoint
from km_registry.errors import ArtifactError
from km_registry.types import KM, JobState, Stage
from trainer_worker import publication
from trainer_worker.progress import Reporter

from .tiny import TITLE
from .trainings import Trainings, play, written


def test_a_claimed_job_becomes_a_published_km(trainings: Trainings, base_dir: Path) -> None:
    job = trainings.upload()

    km = trainings.published(job)

    manifest = artifacts.verify(Path(km.path), base_fingerprint=km.base_fingerprint, max_rank=4)
    assert trainings.registry.job(job.id).state is JobState.SUCCEEDED
    assert (manifest["title"], manifest["seed"], manifest["base_model"]) == (TITLE, 5, base_dir.name)
    assert (manifest["recipe"]["steps"], manifest["objective"]) == (6, "sdcd")
    assert manifest["made"] == {"device": "cpu", "dtype": "float32", "threads": 1}
    metrics = km.metrics
    assert metrics == manifest["metrics"]
    assert (metrics["steps"], metrics["early_stop"], metrics["warm_start"]) == (6, False, None)
    assert 1 <= metrics["best_step"] <= 6
    assert metrics["kl_base"] > metrics["kl_km"] > 0
    assert 0 < metrics["recovered"] < 1
    assert set(metrics["by_kind"]) <= set(metrics["samples_by_kind"]) == {"recall", "repeat", "summary"}
    assert sum(metrics["samples_by_kind"].values()) == metrics["samples"]
    assert set(metrics["seconds"]) == {"synthesis", "teacher", "training", "evaluation", "export"}
    assert 0.05 < metrics["peak_rss_gb"] < 64
    assert trainings.left("work") == []


def test_every_stage_is_told_in_order_without_the_documents_text(trainings: Trainings) -> None:
    job = trainings.upload()

    trainings.train(job)

    events = trainings.told(job)
    stages = [event.data["stage"] for event in events if event.kind == "progress"]
    assert list(dict.fromkeys(stages)) == ["synthesis", "teacher", "training", "evaluation", "export"]
    assert stages == sorted(stages, key=[str(stage) for stage in Stage].index)
    assert events[-1].kind == "published"
    steps = [e.data for e in events if e.kind == "progress" and e.data["stage"] == "training"]
    assert (steps[-1]["step"], steps[-1]["total_steps"]) == (6, 6)
    assert steps[-1]["loss"] > 0
    assert not any("lighthouse" in json.dumps(event.data) for event in events)


def test_the_same_seed_gives_the_same_km(trainings: Trainings) -> None:
    def train(seed: int) -> KM:
        job = trainings.upload(seed=seed)
        torch.rand(seed + 3)  # whatever was drawn in this process before
        km = trainings.published(job)
        trainings.forget(job)
        return km

    first, second, other = train(5), train(5), train(6)

    assert first.digest == second.digest != other.digest


@pytest.mark.parametrize("stage", [Stage.SYNTHESIS, Stage.TEACHER, Stage.TRAINING, Stage.EVALUATION])
def test_a_cancelled_training_leaves_nothing_behind(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    job = trainings.upload()
    begin = Reporter.stage

    def cancelled(self: Reporter, name: Stage, *rest: Any, **data: Any) -> None:
        begin(self, name, *rest, **data)
        if name is stage:
            trainings.registry.tombstone(trainings.owner, job.document_id)
            self._last = 0.0  # the very next step is written

    monkeypatch.setattr(Reporter, "stage", cancelled)

    trainings.train(job)

    assert trainings.registry.job(job.id).state is JobState.CANCELLED
    assert trainings.registry.run_of(job.id) is None
    trainings.registry.purge(job.document_id)
    assert trainings.left() == []


def test_one_cancelled_at_the_very_end_leaves_nothing_behind(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = trainings.upload()
    export_km = publication.export_km

    def cancelled_while_exporting(*arguments: Any, **fields: Any) -> dict[str, Any]:
        manifest = export_km(*arguments, **fields)
        trainings.registry.tombstone(trainings.owner, job.document_id)
        return manifest

    monkeypatch.setattr(publication, "export_km", cancelled_while_exporting)

    trainings.train(job)

    assert trainings.registry.km_of(job.document_id) is None
    trainings.registry.purge(job.document_id)
    assert trainings.left() == []


def test_an_export_that_fails_fails_the_job_and_leaves_nothing(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_slot: Any, directory: Path, **_fields: Any) -> None:
        directory.mkdir(parents=True)
        (directory / "adapter_model.safetensors").write_bytes(b"half")
        raise ArtifactError("bad")

    monkeypatch.setattr(publication, "export_km", fail)

    assert "bad" in refused(trainings, steps=1)
    assert trainings.left() == []


def refused(trainings: Trainings, **fields: Any) -> str:
    """Why the job of a document with these recipe fields fails."""
    job = trainings.upload(**fields)
    trainings.train(job)
    after = trainings.registry.job(job.id)
    assert after.state is JobState.FAILED
    assert after.error
    return after.error


def test_a_recipe_that_cannot_work_is_refused_before_any_work(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = play(monkeypatch)

    assert "rank" in refused(trainings, rank=trainings.settings.lora_rank + 1)
    assert made == []


def test_a_document_that_gives_no_samples_is_refused_with_a_remedy(trainings: Trainings) -> None:
    reason = refused(trainings, text="It was as it was.", kinds=["recall"])

    assert "recall" in reason
    assert "repeat" in reason


def test_a_base_model_that_is_not_there_fails_the_job(trainings: Trainings, tmp_path: Path) -> None:
    job = trainings.upload()

    trainings.train(job, base_model=str(tmp_path / "nowhere"))

    assert "nowhere" in (trainings.registry.job(job.id).error or "")


def test_the_shortest_document_can_be_trained(trainings: Trainings) -> None:
    km = trainings.published(trainings.upload(text="Maren.", kinds=["repeat"], steps=2))

    assert km.metrics["samples"] == 1


@pytest.mark.parametrize("objective", ["lm", "pit", "ddcd"])
def test_every_objective_is_trained_and_measured(trainings: Trainings, objective: str) -> None:
    km = trainings.published(trainings.upload(objective=objective, steps=3))

    assert km.metrics["kl_base"] > 0
    assert km.metrics["steps"] == 3


def test_a_generator_that_is_down_costs_its_texts_and_not_the_training(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, lambda _: httpx.Response(503))

    km = trainings.published(trainings.upload(kinds=["summary"], steps=2))

    (fallback,) = km.metrics["synthesis"]["fallbacks"]
    assert (fallback["kind"], fallback["reason"]) == ("summary", "the generator answered 503")
    assert km.metrics["synthesis"]["kinds"]["repeat"]["samples"] == len(fallback["chunks"]) > 1
    assert "summary" in km.metrics["notes"][0]


@pytest.mark.parametrize("name", [None, "big"])
def test_a_named_generator_is_asked_as_the_model_it_is(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    big = GeneratorEndpoint(url="http://big.test/v1", model="big-9b")
    made = play(monkeypatch, written)

    km = trainings.published(trainings.upload(generator=name, steps=1), generators={"big": big})

    ((endpoint, tokenizer),) = made
    assert (endpoint.model, tokenizer is None) == (("big-9b", True) if name else ("base", False))
    assert km.metrics["synthesis"]["generator"] == endpoint.model
