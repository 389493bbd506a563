"""The command `km`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from server.client import Client
    from server.config import ServerSettings

_USAGE_ERROR = 2

app = typer.Typer(
    name="km",
    help="Online inference server with hot-swappable knowledge: documents become small, removable modules.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[Path | None, typer.Option(help="Where everything is kept (KM_DATA_DIR).")]
RedisUrl = Annotated[str | None, typer.Option(help="Redis to use instead of a private one (REDIS_URL).")]
DatabaseUrl = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL to use instead of SQLite (KM_DATABASE_URL).")
]
BaseModelSetting = Annotated[
    str | None, typer.Option(help="`embedded`, a model directory or a hub id (KM_BASE_MODEL).")
]
DocumentId = Annotated[str, typer.Argument(help="The document's id, doc_…")]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SystemExit as end:
        if "vllm" in sys.modules and isinstance(end.code, int):
            # All that needs an orderly end has had it; what vLLM does while Python is being taken down
            # prints tracebacks and may hang.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise


# --- the server --------------------------------------------------------------------------------------------


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (KM_HOST; 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one (KM_PORT; 8321).")] = None,
    data_dir: DataDir = None,
    base_model: BaseModelSetting = None,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest prompt plus answer, in tokens (KM_MAX_MODEL_LEN; 4096).")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write {url, pid, admin_key?} as JSON here once ready.")
    ] = None,
) -> None:
    """Start everything on this machine: API, engine, a private Redis, the worker. Ctrl-C stops it all."""
    settings = _settings(
        host=host,
        port=port,
        data_dir=data_dir,
        base_model=base_model,
        redis_url=redis_url,
        database_url=database_url,
        max_model_len=max_model_len,
    )
    from km_registry.errors import BaseModelError, KMError
    from server.engine.base import EngineUnavailableError
    from server.redis_private import RedisUnavailableError
    from server.startup import ServeError, StoppedError
    from server.supervisor import serve as run

    try:
        run(settings, ready_file=ready_file)
    except StoppedError as error:
        _fail(error, code=0)
    except (ServeError, RedisUnavailableError, BaseModelError) as error:
        _fail(error)
    except (KMError, EngineUnavailableError) as error:
        _fail(f"{error} The logs are in {settings.data_dir / 'logs'}.", code=1)


@app.command()
def worker(
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    base_model: BaseModelSetting = None,
    generator_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint …/v1 that writes synthetic text.")
    ] = None,
) -> None:
    """Run one more worker for a server that is given its Redis by REDIS_URL."""
    settings = _settings(
        data_dir=data_dir,
        redis_url=redis_url,
        database_url=database_url,
        base_model=base_model,
        generator_url=generator_url,
    )
    if not settings.redis_url:
        _fail("A worker needs the server's Redis. Set REDIS_URL or --redis-url to the one the server uses.")
    environment = {
        "KM_DATA_DIR": str(settings.data_dir),
        "KM_DATABASE_URL": settings.effective_database_url,
        "REDIS_URL": settings.redis_url,
        "KM_BASE_MODEL": settings.base_model,
        "KM_GENERATOR_URL": settings.generator_url or f"http://{settings.host}:{settings.port}/v1",
        "KM_GENERATOR_KEY": settings.generator_key or settings.internal_key,
    }
    # Not imported: server and trainer never meet. The worker takes this process's place and its signals.
    command = [sys.executable, "-m", "trainer_worker"]
    os.execve(command[0], command, {**os.environ, **environment})  # noqa: S606  no shell is wanted


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("km-server"))


@app.command()
def demo(
    recipe: Annotated[str, typer.Option(help='Training recipe as JSON, for example {"steps": 200}.')] = "{}",
    document: Annotated[
        Path | None, typer.Option(help="Your own .md file, with questions in a .jsonl file beside it.")
    ] = None,
) -> None:
    """Show everything once: upload, training, answers with and without the KM, deletion."""
    import json

    try:
        fields = json.loads(recipe)
    except json.JSONDecodeError as error:
        _fail(f'--recipe is not JSON ({error}). Write it like {{"steps": 200}}.')
    from server.demo import main as run

    raise typer.Exit(run(fields, document))


# --- a client ----------------------------------------------------------------------------------------------


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A .txt or .md file in UTF-8.", exists=True, dir_okay=False)],
    title: Annotated[str | None, typer.Option(help="Title; the file's name otherwise.")] = None,
) -> None:
    """Upload a document; its KM is trained in the background."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        _fail(f"{file} is not UTF-8. Save it as UTF-8 and try again.")
    with _client() as client:
        added = client.add(title or file.stem, text)
    typer.echo(f"{added['document']['id']}  {added['document']['title']}  {added['job']['state']}")


@app.command("ls")
def list_documents() -> None:
    """List your documents, newest first."""
    from rich.console import Console
    from rich.table import Table

    with _client() as client:
        documents = client.documents()["documents"]
    table = Table("document", "bytes", "uploaded", "title", box=None)
    for document in documents:
        uploaded = document["created_at"][:16].replace("T", " ")
        table.add_row(document["id"], str(document["size_bytes"]), uploaded, document["title"])
    Console().print(table)


@app.command()
def ask(
    document: DocumentId,
    question: Annotated[str, typer.Argument(help="The question.")],
    mode: Annotated[
        str, typer.Option(help="km: the question only; icl: document in context; base: neither.")
    ] = "km",
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
) -> None:
    """Ask a document."""
    options: dict[str, Any] = {"mode": mode} | ({} if max_tokens is None else {"max_tokens": max_tokens})
    with _client() as client:
        typer.echo(client.answer(document, question, **options)["answer"])


@app.command("rm")
def remove(document: DocumentId) -> None:
    """Delete a document and everything that was made of it; prints the receipt."""
    from rich.console import Console

    with _client() as client:
        Console().print_json(data=client.delete(document))


@app.command()
def watch(document: DocumentId) -> None:
    """Follow a document's training until it is over."""
    with _client() as client:
        for event in client.events(document):
            typer.echo(f"{event.kind:<10} {_phrase(event.data)}".rstrip())


def _phrase(data: dict[str, Any]) -> str:
    inner = data.get("data", data)
    shown = inner if isinstance(inner, dict) else data
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
        if isinstance(value, str | int | float)
    )


@contextmanager
def _client() -> Iterator[Client]:
    from server.client import Client, ClientError

    key = os.environ.get("KM_API_KEY")
    if not key:
        _fail("Set KM_API_KEY to an API key; `km serve` prints one at its first start.")
    try:
        with Client(os.environ.get("KM_URL", "http://127.0.0.1:8321"), key) as client:
            yield client
    except ClientError as error:
        _fail(error, code=1)


# --- helpers -----------------------------------------------------------------------------------------------


def _settings(**options: Any) -> ServerSettings:
    """Settings from the environment, with the options that were given on top."""
    from pydantic import ValidationError

    from server.config import ServerSettings

    try:
        return ServerSettings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper().removeprefix("KM_")
        _fail(f"The setting KM_{name} is wrong: {first['msg']}. Correct the option or the variable.")


def _fail(problem: Exception | str, *, code: int = _USAGE_ERROR) -> NoReturn:
    typer.echo(f"km: {problem}" if code else str(problem), err=True)
    raise typer.Exit(code)
