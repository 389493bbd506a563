"""The command line: what each command asks for, how it fails, and that starting it is light."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import stamina
from typer.testing import CliRunner, Result

from server import cli, cli_server
from server.cli_lazy import Listed

EVENTS = (
    'event: queued\nid: 1\ndata: {"stage": "waiting"}\n\n: ping\n\n'
    'event: progress\nid: 2\ndata: {"stage": "training", "step": 3,\ndata: "loss": 0.123456}\n\n'
    "event: published\nid: 3\ndata: {}\n\n"
)
DOCUMENT = {
    "id": "doc_1",
    "title": "Harbour [old]",
    "size_bytes": 12,
    "created_at": "2026-01-31T12:00:00Z",
    "version": 2,
    "km_version": 1,
    "progress": "training 3/9",
    "recovered": 0.8123,
}
#: What they have to tell is not an answer but what goes on.
RUN_SOMETHING = ("serve", "worker", "demo")
RECIPES = {"limits": {"rank": 8, "context_tokens": 1024, "generators": ["big"]}}


class FakeApi:
    """Answers like the HTTP API and records what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any, str | None]] = []
        self.replies: dict[tuple[str, str], tuple[int, str]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def replies_with(self, method: str, path: str, body: Any, status: int = 200) -> None:
        self.replies[method, path] = (status, body if isinstance(body, str) else json.dumps(body))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                sent = _form(self.headers["Content-Type"], body) if length else None
                api.requests.append((self.command, self.path, sent, self.headers["Authorization"]))
                status, body = api.replies[self.command, self.path]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = do_PUT = do_DELETE = _serve

            def log_message(self, *arguments: Any) -> None:
                """Keep the tests' output clean."""

        return Handler


def _form(content_type: str, body: bytes) -> Any:
    """What was sent: JSON, or a form's fields with files as (name, content)."""
    if content_type == "application/json":
        return json.loads(body)
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body, policy=HTTP)
    parts = {str(part.get_param("name", header="content-disposition")): part for part in message.iter_parts()}
    return {
        name: (part.get_filename(), part.get_payload(decode=True))
        if part.get_filename()
        else part.get_content()
        for name, part in parts.items()
    }


@pytest.fixture(autouse=True)
def _one_attempt() -> Iterator[None]:
    # What is tried again is the client's business, and its tests'.
    with stamina.set_testing(True, attempts=1):
        yield


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    fake = FakeApi()
    monkeypatch.setenv("KM_URL", fake.url)
    monkeypatch.setenv("KM_API_KEY", "km_secret")
    yield fake
    fake.close()


def km(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def test_help_imports_no_command_and_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "vllm", "fastapi", "uvicorn", "sqlalchemy", "httpx", "redis", "stamina"}
    heavy |= {"pydantic", "km_registry", "server.client"} | {one.target.split(":")[0] for one in cli.COMMANDS}
    code = (
        "import sys, server.cli\ntry: server.cli.app(['--help'])\nexcept SystemExit: pass\n"
        f"print(*(name for name in {sorted(heavy)} if name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.split() == []
    for listed in cli.COMMANDS:
        assert f" {listed.name} " in done.stdout


@pytest.mark.parametrize("listed", cli.COMMANDS, ids=lambda listed: listed.name)
def test_the_list_says_what_the_command_says(listed: Listed) -> None:
    command = listed.load()

    assert command.help is not None
    assert listed.help == command.help.splitlines()[0]
    for one in getattr(command, "commands", {"": command}).values():
        options = {name for option in one.params for name in option.opts}
        assert ("--json" in options) == (listed.name not in RUN_SOMETHING), one.name


def test_a_command_that_is_not_there_is_named() -> None:
    done = km("wacth")

    assert done.exit_code == 2
    assert "watch" in done.stderr


def test_completion_knows_commands_and_documents(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.replies_with("GET", "/documents", {"documents": [DOCUMENT], "next_before": None})

    def completed(words: str) -> str:
        variables = {"_KM_COMPLETE": "complete_bash", "COMP_WORDS": words}
        return (
            CliRunner()
            .invoke(cli.app, [], prog_name="km", env={**variables, "COMP_CWORD": str(words.count(" "))})
            .output
        )

    assert completed("km wat").split() == ["watch"]
    assert "doc_1" in completed("km show doc")
    monkeypatch.setenv("KM_URL", "http://127.0.0.1:1")
    assert completed("km show doc").split() == []


def test_add(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "harbour.md"
    file.write_text("It opens at six.", encoding="utf-8")
    api.replies_with("POST", "/documents", {"document": DOCUMENT, "job": {"state": "queued"}}, 202)

    done = km("add", str(file))

    assert done.output == "doc_1  Harbour [old]  queued\n"
    sent = {"file": ("harbour.md", b"It opens at six.")}
    assert api.requests == [("POST", "/documents", sent, "Bearer km_secret")]


@pytest.mark.parametrize("command", [("add",), ("update", "doc_1"), ("train", "doc_1"), ("demo",)])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--recipe", "{"), "not JSON"),
        (("--recipe", "[1]"), "not a JSON object"),
        (("--recipe", '{"rank": 9, "kinds": []}'), "kinds"),
        (("--recipe", '{"generator": "huge"}'), "no generator 'huge'"),
        (("--preset", "slow"), "preset"),
        (("--preset", "fast", "--recipe", '{"preset": "paper"}'), "Give the preset once"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_sent(
    api: FakeApi, tmp_path: Path, command: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "harbour.md"
    file.write_text("It opens at six.", encoding="utf-8")
    api.replies_with("GET", "/recipes", RECIPES)

    done = km(*command, *([str(file)] if command[0] in ("add", "update") else []), *options)

    assert done.exit_code == 2
    assert said in done.stderr
    assert {method for method, *_ in api.requests} <= {"GET"}


def test_a_recipe_is_held_to_the_servers_limits(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "harbour.md"
    file.write_text("It opens at six.", encoding="utf-8")
    api.replies_with("GET", "/recipes", RECIPES)

    assert "above the 8" in km("add", str(file), "--recipe", '{"rank": 9}').stderr
    assert "1024 tokens" in km("add", str(file), "--preset", "paper").stderr


def test_add_takes_folders_and_goes_on_after_a_refusal(api: FakeApi, tmp_path: Path) -> None:
    for name in ("a.md", "deep/b.TXT", ".hidden/c.md", "picture.png"):
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tmp_path / "named.png").write_text("no text")
    api.replies_with("POST", "/documents", {"document": DOCUMENT, "job": {"state": "queued"}}, 202)

    done = km("add", str(tmp_path / "folder"), str(tmp_path / "named.png"))

    sent = [sent["file"] for _, _, sent, _ in api.requests]
    assert sent == [("a.md", b"a.md"), ("b.TXT", b"deep/b.TXT"), ("named.png", b"no text")]
    assert (done.exit_code, done.stdout.count("doc_1")) == (0, 3)
    api.replies_with("POST", "/documents", {"error": {"message": "Not a document."}}, 415)
    done = km("add", str(tmp_path / "folder"))
    assert (done.exit_code, done.stderr.count("Not a document.")) == (1, 2)


def test_add_reads_a_pipe_and_speaks_json(api: FakeApi) -> None:
    reply = {"document": DOCUMENT, "job": {"state": "queued"}}
    api.replies_with("POST", "/documents", reply, 202)

    done = CliRunner().invoke(cli.app, ["add", "-", "--title", "Note", "--json"], input="It opens at six.")

    assert api.requests[0][2] == {"file": ("stdin", b"It opens at six."), "title": "Note"}
    assert [json.loads(line) for line in done.stdout.splitlines()] == [reply]


def test_add_refuses_what_cannot_be_meant(api: FakeApi, tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text(name)

    assert "names one document" in km("add", str(tmp_path), "--title", "Two").stderr
    assert "There is no" in km("add", str(tmp_path / "none.md")).stderr
    assert km("add", str(tmp_path / "none.md")).exit_code == 2
    assert api.requests == []


def test_add_waits_for_the_training(api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("It opens at six.")
    api.replies_with("POST", "/documents", {"document": DOCUMENT, "job": {"state": "queued"}}, 202)
    api.replies_with("GET", "/documents/doc_1/events", 'event: failed\ndata: {"error": "no memory"}\n\n')

    done = km("add", str(tmp_path / "a.md"), "--wait")

    assert done.exit_code == 1
    assert "no memory" in done.stdout


def test_add_with_a_recipe(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "harbour.md"
    file.write_text("It opens at six.", encoding="utf-8")
    api.replies_with("GET", "/recipes", RECIPES)
    api.replies_with("POST", "/documents", {"document": DOCUMENT, "job": {"state": "queued"}}, 202)

    assert km("add", str(file), "--preset", "fast", "--recipe", '{"generator": "big"}').exit_code == 0

    sent = api.requests[-1][2]
    assert sent["file"] == ("harbour.md", b"It opens at six.")
    assert json.loads(sent["recipe"]) == {"preset": "fast", "generator": "big"}


@pytest.mark.parametrize(
    ("created", "said"), [(True, "doc_1  version 2  queued\n"), (False, "doc_1 has this text already")]
)
def test_update(api: FakeApi, tmp_path: Path, created: bool, said: str) -> None:
    file = tmp_path / "harbour.md"
    file.write_text("It opens at seven.", encoding="utf-8")
    reply = {"document": DOCUMENT, "job": {"state": "queued"}, "created": created}
    api.replies_with("PUT", "/documents/doc_1", reply, 202)

    done = km("update", "doc_1", str(file))

    assert done.output.startswith(said)
    sent = {"file": ("harbour.md", b"It opens at seven.")}
    assert api.requests == [("PUT", "/documents/doc_1", sent, "Bearer km_secret")]


def test_train(api: FakeApi) -> None:
    api.replies_with("GET", "/recipes", RECIPES)
    api.replies_with("POST", "/documents/doc_1/train", {"job": {"state": "queued", "version": 2}}, 202)

    assert km("train", "doc_1").output == "doc_1  version 2  queued\n"
    assert km("train", "doc_1", "--preset", "fast").exit_code == 0

    assert [sent for _, path, sent, _ in api.requests if path.endswith("train")] == [
        {},
        {"recipe": {"preset": "fast"}},
    ]


def test_ls_follows_the_pages(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    waiting = DOCUMENT | {"id": "doc_2", "km_version": None, "recovered": None, "progress": "queued"}
    api.replies_with("GET", "/documents", {"documents": [DOCUMENT], "next_before": "doc_1"})
    api.replies_with("GET", "/documents?before=doc_1", {"documents": [waiting], "next_before": None})

    _, first, second = km("ls").output.splitlines()

    assert first.split() == [
        "doc_1",
        "2",
        "(KM",
        "1)",
        "training",
        "3/9",
        "0.81",
        "12",
        "2026-01-31",
        "12:00",
        "Harbour",
        "[old]",
    ]
    assert second.split() == ["doc_2", "2", "queued", "-", "12", "2026-01-31", "12:00", "Harbour", "[old]"]


def test_show(api: FakeApi) -> None:
    api.replies_with(
        "GET",
        "/documents/doc_1",
        {
            "document": DOCUMENT,
            "job": {"version": 2, "progress": "failed", "error": "no memory"},
            "km": {"id": "km_1", "version": 1, "metrics": {"recovered": 0.8}},
            "recipe": {"preset": "fast", "generator": None},
            "versions": [DOCUMENT | {"title": "New"}, DOCUMENT | {"version": 1}],
        },
    )

    assert km("show", "doc_1").output.splitlines() == [
        "doc_1  Harbour [old]",
        "version 2  2026-01-31 12:00  12 bytes  New",
        "version 1  2026-01-31 12:00  12 bytes  Harbour [old]",
        "training  version 2  failed",
        "error  no memory",
        "KM km_1  version 1  recovered 0.80",
        'recipe {"preset": "fast"}',
    ]


def test_ask(api: FakeApi) -> None:
    api.replies_with("POST", "/answer", {"answer": "At six."})

    done = km("ask", "doc_1", "When?", "--mode", "icl", "--max-tokens", "5")

    assert done.output == "At six.\n"
    expected = {"document_id": "doc_1", "question": "When?", "mode": "icl", "max_tokens": 5}
    assert api.requests[0][2] == expected


def test_ask_shows_an_answer_as_it_comes(api: FakeApi) -> None:
    answer = json.dumps({"answer": "At six.", "mode": "km", "why": "it was asked for", "passages": []})
    pieces = "".join(f"event: delta\ndata: {json.dumps({'text': text})}\n\n" for text in (" ", "At ", "six."))
    api.replies_with("POST", "/answer", f"{pieces}event: answer\ndata: {answer}\n\n")

    done = km("ask", "doc_1", "When?", "--stream", "--passages")

    assert done.output == "At six.\n\nkm: it was asked for\n"
    assert api.requests[0][2]["stream"] is True


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ('event: error\ndata: {"error": {"message": "The engine died."}}\n\n', "The engine died."),
        ("", "The answer was cut short. Ask again."),
    ],
)
def test_an_answer_that_is_cut_short(api: FakeApi, end: str, says: str) -> None:
    api.replies_with("POST", "/answer", f'event: delta\ndata: {{"text": "At"}}\n\n{end}')

    done = km("ask", "doc_1", "When?", "--stream")

    assert (done.exit_code != 0, done.stdout) == (True, "At")
    assert done.stderr == f"km: {says}\n"


def test_ask_leaves_the_mode_to_the_server_and_shows_what_it_read(api: FakeApi) -> None:
    answer = {
        "answer": "At six.",
        "mode": "rag",
        "why": "the document's KM is not trained yet",
        "ke_name": "answers",
        "why_ke": "mode auto uses the default KE",
        "passages": [{"text": "It opens at six.", "score": 0.7312, "start": 3, "end": 19}],
        "warning": "Beware.",
    }
    api.replies_with("POST", "/answer", answer)

    done = km("ask", "doc_1", "When?", "--k", "1", "--passages")

    assert api.requests[0][2] == {"document_id": "doc_1", "question": "When?", "mode": "auto", "k": 1}
    assert done.stdout.splitlines() == [
        "At six.",
        "",
        "rag: the document's KM is not trained yet",
        "KE answers: mode auto uses the default KE",
        "",
        "[3-19, score 0.73]",
        "It opens at six.",
    ]
    assert done.stderr == "km: Beware.\n"


def test_ask_compares_the_modes(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    answer = {"answer": " At six.", "mode": "rag", "prompt_tokens": 31, "milliseconds": 412.4}
    api.replies_with("POST", "/answer", answer)

    done = km("ask", "doc_1", "When?", "--compare", "--k", "2")

    asked = [(sent["mode"], sent.get("k")) for _, _, sent, _ in api.requests]
    assert asked == [("base", None), ("rag", 2), ("km", None), ("km+rag", 2), ("icl", None)]
    assert done.output.splitlines()[1].split() == ["rag", "At", "six.", "31", "412"]
    assert len(json.loads(km("ask", "doc_1", "When?", "--compare", "--json").output)) == 5
    refusal = {"error": {"message": "It is not trained.", "code": "km_not_trained"}}
    api.replies_with("POST", "/answer", refusal, 409)
    done = km("ask", "doc_1", "When?", "--compare")
    assert (done.exit_code, done.output.count("It is not trained.")) == (1, 5)
    assert km("ask", "doc_1", "When?", "--compare", "--mode", "km").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "method", "path", "reply"),
    [
        (("ls",), "GET", "/documents", {"documents": [DOCUMENT], "next_before": None}),
        (("show", "doc_1"), "GET", "/documents/doc_1", {"document": DOCUMENT}),
        (("ask", "doc_1", "When?"), "POST", "/answer", {"answer": "At six."}),
        (("train", "doc_1"), "POST", "/documents/doc_1/train", {"job": {"state": "queued"}}),
        (("cancel", "doc_1"), "POST", "/documents/doc_1/cancel", {"job": {"state": "cancelled"}}),
        (("rm", "doc_1"), "DELETE", "/documents/doc_1", {"document_id": "doc_1"}),
        (("ke", "ls"), "GET", "/kes", {"kes": []}),
    ],
)
def test_json_is_what_the_server_says(
    api: FakeApi, arguments: tuple[str, ...], method: str, path: str, reply: dict[str, Any]
) -> None:
    api.replies_with(method, path, reply)

    told = json.loads(km(*arguments, "--json").output)

    assert told in (reply, *reply.values())


def test_watch_as_json_and_its_end(api: FakeApi) -> None:
    api.replies_with("GET", "/documents/doc_1/events", 'event: failed\ndata: {"error": "no memory"}\n\n')

    done = km("watch", "doc_1", "--json")

    assert (done.exit_code, json.loads(done.output)) == (1, {"event": "failed", "error": "no memory"})


def test_rm(api: FakeApi) -> None:
    api.replies_with("DELETE", "/documents/doc_1", {"document_id": "doc_1"})

    assert json.loads(km("rm", "doc_1").output) == {"document_id": "doc_1"}


def test_watch(api: FakeApi) -> None:
    api.replies_with("GET", "/documents/doc_1/events", EVENTS)

    assert km("watch", "doc_1").output.splitlines() == [
        "queued     stage waiting",
        "progress   stage training  step 3  loss 0.1235",
        "published",
    ]


@pytest.mark.parametrize("arguments", [("ls",), ("watch", "doc_1")])
def test_a_refusal_is_one_line(arguments: tuple[str, ...], api: FakeApi) -> None:
    refusal = {"error": {"message": "This API key is not known here."}}
    api.replies_with("GET", "/documents", refusal, 401)
    api.replies_with("GET", "/documents/doc_1/events", refusal, 401)

    done = km(*arguments)

    assert done.exit_code == 1
    assert done.stderr == "km: This API key is not known here. (HTTP 401)\n"


@pytest.mark.parametrize("arguments", [("ls",), ("watch", "doc_1")])
def test_no_server_is_one_line(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KM_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("KM_API_KEY", "km_secret")

    done = km(*arguments)

    assert done.exit_code == 3
    assert done.stderr.startswith("km: No answer from http://127.0.0.1:1")
    assert "`km serve`" in done.stderr


def test_no_key_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KM_API_KEY", raising=False)

    done = km("ls")

    assert done.exit_code == 2
    assert done.stderr.startswith("km: Set KM_API_KEY")


def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KM_PORT", "seven")

    done = km("serve")

    assert done.exit_code == 2
    assert done.stderr.startswith("km: The setting KM_PORT is wrong")
    assert done.stderr.count("\n") == 1


def test_worker_needs_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("KM_REDIS_URL", raising=False)

    done = km("worker")

    assert done.exit_code == 2
    assert "REDIS_URL" in done.stderr


def test_worker_takes_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[Any] = []
    monkeypatch.setattr(cli_server.os, "execve", lambda *arguments: called.append(arguments))

    km("worker", "--redis-url", "redis://r", "--data-dir", str(tmp_path), "--generator-url", "http://g/v1")
    km("worker", "--redis-url", "redis://r", "--concurrency", "2", "--queue", "large", "--queue", "default")

    (_, command, environment) = called[0]
    assert command == [sys.executable, "-m", "trainer_worker"]
    assert environment["REDIS_URL"] == "redis://r"
    assert environment["KM_DATABASE_URL"] == f"sqlite:///{tmp_path}/registry.sqlite3"
    assert environment["KM_GENERATOR_URL"] == "http://g/v1"
    assert environment["KM_TRAIN_CONCURRENCY"] == "4"
    assert "KM_QUEUES" not in environment
    assert called[1][2]["KM_TRAIN_CONCURRENCY"] == "2"
    assert called[1][2]["KM_QUEUES"] == "large,default"


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("rm", "doc_1", "--km"), "/documents/doc_1/km"),
        (("rm", "doc_1", "--version", "3"), "/documents/doc_1/versions/3"),
        (("users", "rm", "usr_1"), "/users/usr_1"),
    ],
)
def test_less_and_more_than_a_document_can_be_deleted(
    api: FakeApi, arguments: tuple[str, ...], path: str
) -> None:
    api.replies_with("DELETE", path, {"id": "rcp_1"})
    assert json.loads(km(*arguments).output) == {"id": "rcp_1"}


def test_one_thing_is_deleted_at_a_time(api: FakeApi) -> None:
    assert km("rm", "doc_1", "--km", "--version", "3").exit_code == 2
    assert api.requests == []
