"""The command `km`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from server import cli_access, cli_documents, cli_kes, cli_operation
from server.cli_shared import PresetOption, RecipeOption, check_recipe, fail, recipe_fields, settings_of
from server.evaluation.command import evaluate
from server.ke_training.command import train_ke

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
Concurrency = Annotated[
    int | None,
    typer.Option(help="Most documents trained together, if memory allows (KM_TRAIN_CONCURRENCY; 4)."),
]
BaseModelSetting = Annotated[
    str | None, typer.Option(help="`embedded`, a model directory or a hub id (KM_BASE_MODEL).")
]


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
    embedder: Annotated[
        str | None, typer.Option(help="`embedded`, a directory, a hub id or `none` (KM_EMBEDDER).")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest prompt plus answer, in tokens (KM_MAX_MODEL_LEN; 4096).")
    ] = None,
    concurrency: Concurrency = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write {url, pid, admin_key?} as JSON here once ready.")
    ] = None,
) -> None:
    """Start everything on this machine: API, engine, a private Redis, the worker. Ctrl-C stops it all."""
    settings = settings_of(
        host=host,
        port=port,
        data_dir=data_dir,
        base_model=base_model,
        redis_url=redis_url,
        database_url=database_url,
        embedder=embedder,
        max_model_len=max_model_len,
        train_concurrency=concurrency,
    )
    from km_registry.errors import BaseModelError, KMError
    from server.engine.base import EngineUnavailableError
    from server.redis_private import RedisUnavailableError
    from server.startup import ServeError, StoppedError
    from server.supervisor import serve as run

    try:
        run(settings, ready_file=ready_file)
    except StoppedError as error:
        fail(error, code=0)
    except (ServeError, RedisUnavailableError, BaseModelError) as error:
        fail(error)
    except (KMError, EngineUnavailableError) as error:
        fail(f"{error} The logs are in {settings.data_dir / 'logs'}.", code=1)


@app.command()
def worker(
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    base_model: BaseModelSetting = None,
    generator_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint …/v1 that writes synthetic text.")
    ] = None,
    concurrency: Concurrency = None,
) -> None:
    """Run one more worker for a server that is given its Redis by REDIS_URL."""
    settings = settings_of(
        data_dir=data_dir,
        redis_url=redis_url,
        database_url=database_url,
        base_model=base_model,
        generator_url=generator_url,
        train_concurrency=concurrency,
    )
    if not settings.redis_url:
        fail("A worker needs the server's Redis. Set REDIS_URL or --redis-url to the one the server uses.")
    environment = {
        "KM_DATA_DIR": str(settings.data_dir),
        "KM_DATABASE_URL": settings.effective_database_url,
        "REDIS_URL": settings.redis_url,
        "KM_BASE_MODEL": settings.base_model,
        "KM_GENERATOR_URL": settings.generator_url or f"http://{settings.host}:{settings.port}/v1",
        "KM_GENERATOR_KEY": settings.generator_key or settings.internal_key,
        "KM_TRAIN_CONCURRENCY": str(settings.train_concurrency),
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
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    document: Annotated[
        Path | None, typer.Option(help="Your own .md file, with questions in a .jsonl file beside it.")
    ] = None,
) -> None:
    """Show everything once: upload, training, answers with and without the KM, deletion."""
    fields = recipe_fields(recipe, preset)
    settings = settings_of()
    from km_registry.recipe import RecipeLimits

    # Before a server is started for it; what the model reads is not known yet.
    check_recipe(fields, RecipeLimits(rank=settings.lora_rank, generators=frozenset(settings.generators)))
    from server.demo import main as run

    raise typer.Exit(run(fields, document))


app.command("eval")(evaluate)
app.command("train-ke")(train_ke)
cli_documents.register(app)
cli_operation.register(app)
app.add_typer(cli_kes.app)
cli_access.register(app)
