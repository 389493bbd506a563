"""The main job on real parts, as a user does it over HTTP: upload, train, ask, delete."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.e2e.conftest import QUICK, RunningServer, events

SMALL = Path(__file__).parents[1] / "data" / "small.md"
QUESTIONS = (
    "Who keeps the key of the workshop?",
    "What does the workshop repair?",
    "When does the workshop close?",
    "What must visitors not touch?",
)


def _openai(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=server.admin_key, max_retries=0)


def _post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.is_success, response.text
    return response.json()


@pytest.fixture(scope="module")
def trained(server: RunningServer) -> tuple[httpx.Client, dict[str, Any]]:
    """A document whose KM is published."""
    title, _, text = SMALL.read_text().partition("\n")
    with server.client() as client, _openai(server) as openai:
        name = f"{title.lstrip('# ')}.md"
        # OpenAI's client does what most people would do with our own.
        file = openai.files.create(
            file=(name, text.encode()), purpose="fine-tune", extra_body={"recipe": json.dumps(QUICK)}
        )
        job = openai.fine_tuning.jobs.create(model="base", training_file=file.id)
        added = client.get(f"/documents/{file.id}").json()
        assert added["job"]["id"] == job.id
        kinds = [kind for kind, _ in events(client, added["document"]["id"])]
        assert kinds[0] == "queued"
        assert kinds[-1] == "published"
        yield client, added


def test_training_is_reported_stage_by_stage_to_a_late_subscriber_too(trained) -> None:
    client, added = trained
    told = events(client, added["document"]["id"])
    stages = list(dict.fromkeys(data["stage"] for kind, data in told if kind == "progress"))
    assert stages == ["synthesis", "teacher", "training", "evaluation", "export"]
    training = [data for kind, data in told if kind == "progress" and data["stage"] == "training"]
    assert training[-1]["step"] == training[-1]["total_steps"] == QUICK["steps"]
    assert training[-1]["loss"] > 0
    assert training[-1]["seconds_left"] == 0


def test_openais_client_follows_the_training_and_asks(server: RunningServer, trained) -> None:
    _, added = trained
    with _openai(server) as openai:
        job = openai.fine_tuning.jobs.retrieve(added["job"]["id"])
        assert (job.status, job.training_file) == ("succeeded", added["document"]["id"])
        told = openai.fine_tuning.jobs.list_events(job.id, limit=100).data
        assert told[0].message == "The KM is trained"
        assert any("loss" in event.data for event in told if event.type == "metrics")
        assert job.fine_tuned_model is not None
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        by_km = openai.chat.completions.create(
            model=job.fine_tuned_model, messages=messages, temperature=0, max_tokens=16
        )
        assert by_km.choices[0].message.content


def test_the_km_is_measured_and_described(trained) -> None:
    client, added = trained
    detail = client.get(f"/documents/{added['document']['id']}").json()
    assert detail["job"]["state"] == "succeeded"
    metrics = detail["km"]["metrics"]
    assert metrics["kl_km"] < metrics["kl_base"]
    assert 0 < metrics["recovered"] <= 1
    assert metrics["seconds"]["training"] > 0


def test_the_same_text_again_is_the_same_document(trained) -> None:
    client, added = trained
    title, _, text = SMALL.read_text().partition("\n")
    again = client.post("/documents", json={"title": title.lstrip("# "), "text": text})
    assert again.status_code == 200
    assert again.json()["document"]["id"] == added["document"]["id"]
    assert again.json()["created"] is False


def test_every_mode_answers_and_only_icl_reads_the_document(trained) -> None:
    client, added = trained
    asked = {"document_id": added["document"]["id"], "question": QUESTIONS[0], "max_tokens": 16}
    answers = {mode: _post(client, "/answer", **asked, mode=mode) for mode in ("km", "icl", "base")}
    assert answers["km"]["prompt_tokens"] == answers["base"]["prompt_tokens"] <= 60
    assert answers["icl"]["prompt_tokens"] > 280
    assert answers["km"]["km_id"].startswith("km_")
    assert answers["base"]["km_id"] is answers["icl"]["km_id"] is None
    assert answers["km"]["answer"] != answers["base"]["answer"]


def test_passages_answer_with_and_without_the_km(trained) -> None:
    client, added = trained
    asked = {"document_id": added["document"]["id"], "question": QUESTIONS[0], "max_tokens": 16}
    rag = _post(client, "/answer", **asked, mode="rag", k=2)
    auto = _post(client, "/answer", **asked)
    assert (rag["mode"], rag["km_id"]) == ("rag", None)
    assert (auto["mode"], auto["asked_mode"], auto["why"]) == (
        "km+rag",
        "auto",
        "the document's KM is trained",
    )
    assert auto["km_id"].startswith("km_")
    assert auto["warning"] is None
    assert auto["passages"] == rag["passages"]
    assert "Lotte Grunwick" in "".join(passage["text"] for passage in rag["passages"])
    assert auto["prompt_tokens"] == rag["prompt_tokens"] <= 220


def test_km_and_base_in_flight_together_never_influence_each_other(trained) -> None:
    client, added = trained
    requests = [
        {"document_id": added["document"]["id"], "question": question, "mode": mode, "max_tokens": 24}
        for question in QUESTIONS
        for mode in ("km", "base")
    ]
    alone = [_post(client, "/answer", **request)["answer"] for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: _post(client, "/answer", **request)["answer"], requests))
    assert together == alone
    assert alone[0::2] != alone[1::2]


def test_nobody_else_sees_the_document(server: RunningServer, trained) -> None:
    client, added = trained
    document_id = added["document"]["id"]
    key = _post(client, "/users", name="stranger")["api_key"]
    with server.client(key) as stranger:
        refusals = [
            stranger.get(f"/documents/{document_id}"),
            stranger.get(f"/documents/{document_id}/events"),
            stranger.post("/answer", json={"document_id": document_id, "question": "Who?"}),
            stranger.delete(f"/documents/{document_id}"),
            stranger.post("/v1/completions", json={"model": document_id, "prompt": "x"}),
        ]
        unknown = stranger.get("/documents/doc_aaaaaaaaaaaaaaaaaaaa")
        assert [refusal.status_code for refusal in refusals] == [404] * 5
        assert refusals[0].json() == unknown.json()
        assert stranger.get("/documents").json()["documents"] == []
    assert client.get(f"/documents/{document_id}").status_code == 200


def test_a_training_that_fails_leaves_the_document_askable(server: RunningServer) -> None:
    with server.client() as client:
        added = _post(
            client,
            "/documents",
            title="Doomed",
            text="The lamp of Ostrell is lit by Maro Finch.",
            # What no check of a recipe can foresee: the update overflows, and the loss is no number.
            recipe={"kinds": ["repeat"], "alpha": 1e38, "learning_rate": 1.0, "steps": 4},
        )
        document_id = added["document"]["id"]
        kind, data = events(client, document_id)[-1]
        assert kind == "failed"
        assert "not finite at step" in data["error"]
        refused = client.post(
            "/answer", json={"document_id": document_id, "question": "Who lights it?", "mode": "km"}
        )
        assert refused.status_code == 409
        assert data["error"] in refused.json()["error"]["message"]
        answer = _post(client, "/answer", document_id=document_id, question="Who lights it?")
        assert (answer["mode"], len(answer["passages"])) == ("rag", 1)
        answer = _post(client, "/answer", document_id=document_id, question="Who lights it?", mode="icl")
        assert answer["answer"]
        assert client.post(f"/documents/{document_id}/train").status_code == 202
        assert events(client, document_id)[-1][0] == "failed"
        assert client.delete(f"/documents/{document_id}").status_code == 200


def test_deleting_while_training_stops_it_and_leaves_nothing(server: RunningServer) -> None:
    canary = "Quorvexian lanterns"
    with server.client() as client:
        added = _post(
            client,
            "/documents",
            title="Canary",
            text=f"{canary} burn for nine nights. They are kept by Ilmo Tarn in the east tower.",
            recipe=QUICK | {"steps": 100_000},
        )
        document_id = added["document"]["id"]
        with client.stream("GET", f"/documents/{document_id}/events") as stream:
            for line in stream.iter_lines():
                if '"stage":"training"' in line.replace(" ", "") and '"step":0' not in line.replace(" ", ""):
                    break
        receipt = client.delete(f"/documents/{document_id}")
        assert receipt.status_code == 200, receipt.text
        assert client.get(f"/documents/{document_id}").status_code == 404
        assert client.get(f"/receipts/{document_id}").json()["document_id"] == document_id
    assert _files_with(server.data_dir, canary) == []


def test_deleting_removes_the_knowledge_and_the_base_model_is_what_it_was(
    server: RunningServer, trained
) -> None:
    client, added = trained
    document_id = added["document"]["id"]
    completions = {"model": "base", "prompt": "The house rules of the workshop say", "max_tokens": 24}
    before = _post(client, "/v1/completions", **completions, temperature=0)["choices"][0]["text"]
    km_id = client.get(f"/documents/{document_id}").json()["km"]["id"]
    # Other tests' documents may have theirs.
    adapters = set((server.data_dir / "kms").iterdir())
    assert server.data_dir / "kms" / km_id in adapters
    receipt = client.delete(f"/documents/{document_id}").json()
    assert receipt["purged"]["kms"] == 1
    assert receipt["purged"]["passage_bytes"] > 1000
    assert receipt["purged"]["adapter_bytes"] > 1_000_000
    assert client.post("/answer", json={"document_id": document_id, "question": "Who?"}).status_code == 404
    assert client.delete(f"/documents/{document_id}").status_code == 404
    assert adapters - set((server.data_dir / "kms").iterdir()) == {server.data_dir / "kms" / km_id}
    assert _post(client, "/v1/completions", **completions, temperature=0)["choices"][0]["text"] == before
    assert _files_with(server.data_dir, "Ambrel Street") == []


def _files_with(directory: Path, text: str) -> list[Path]:
    """Files under the directory that hold the text, the base model's left aside."""
    return [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "models" not in path.parts and text.encode() in path.read_bytes()
    ]
