"""Commands of `km` that run something: the server, a worker, the demo."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli_options import with_settings
from server.cli_shared import Json, PresetOption, RecipeOption, check_recipe, fail, recipe_fields, settings_of

_WORKERS = (
    "data_dir",
    "redis_url",
    "database_url",
    "store_url",
    "base_model",
    "generator_url",
    "train_concurrency",
    "lora_rank",
    "crash_retries",
    "retries",
    "retry_seconds",
    "max_document_bytes",
)


@with_settings()
def serve(
    options: dict[str, Any],
    ready_file: Annotated[
        Path | None, typer.Option(help="Write {url, pid, admin_key?} as JSON here once ready.")
    ] = None,
) -> None:
    """Start everything on this machine.

    API, engine, a private Redis, the worker. Ctrl-C stops it all.
    """
    settings = settings_of(**options)
    from km_registry.errors import BaseModelError, KMError
    from server.engine.base import EngineNotReachedError, EngineUnavailableError
    from server.redis_private import RedisUnavailableError
    from server.startup import ServeError, StoppedError
    from server.supervisor import serve as run

    try:
        run(settings, ready_file=ready_file)
    except StoppedError as error:
        fail(error, code=0)
    except (ServeError, RedisUnavailableError, BaseModelError, EngineNotReachedError) as error:
        fail(error)
    except (KMError, EngineUnavailableError) as error:
        fail(f"{error} The logs are in {settings.data_dir / 'logs'}.", code=1)


@with_settings(*_WORKERS)
def worker(
    options: dict[str, Any],
    queue: Annotated[
        list[str] | None,
        typer.Option(help="Serve this queue, which recipes name; give it again for another one."),
    ] = None,
) -> None:
    """Run one more worker.

    For a server that is given its Redis by REDIS_URL. What only workers have is set by the environment or the
    settings file: see `km config`.
    """
    settings = settings_of(**options)
    if not settings.redis_url:
        fail("A worker needs the server's Redis. Set REDIS_URL or --redis-url to the one the server uses.")
    environment = {
        **{f"KM_{name.upper()}": str(getattr(settings, name)) for name in options},
        "KM_STORE_URL": settings.store_url or "",
        "KM_STORE_CACHE_GB": str(settings.store_cache_gb),
        "KM_DATA_DIR": str(settings.data_dir),
        "KM_DATABASE_URL": settings.effective_database_url,
        "KM_REDIS_URL": settings.redis_url,
        "REDIS_URL": settings.redis_url,
        "KM_BASE_MODEL": settings.base_model,
        "KM_GENERATOR_URL": settings.generator_url or f"http://{settings.host}:{settings.port}/v1",
        "KM_GENERATOR_KEY": settings.generator_key or settings.internal_key,
        "KM_TRAIN_CONCURRENCY": str(settings.train_concurrency),
    }
    if queue:
        environment["KM_QUEUES"] = ",".join(queue)
    # Not imported: server and trainer never meet. The worker takes this process's place and its signals.
    command = [sys.executable, "-m", "trainer_worker"]
    os.execve(command[0], command, {**os.environ, **environment})  # noqa: S606  no shell is wanted


def version(as_json: Json = False) -> None:
    """Print the version."""
    import json
    from importlib.metadata import version as installed

    found = installed("km-server")
    typer.echo(json.dumps({"version": found}) if as_json else found)


def demo(
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    document: Annotated[
        Path | None, typer.Option(help="Your own .md file, with questions in a .jsonl file beside it.")
    ] = None,
) -> None:
    """Show the main job once, with a sample.

    Upload, training, answers with and without the KM, deletion.
    """
    fields = recipe_fields(recipe, preset)
    settings = settings_of()
    from km_registry.recipe import RecipeLimits

    # Before a server is started for it; what the model reads is not known yet.
    check_recipe(fields, RecipeLimits(rank=settings.lora_rank, generators=frozenset(settings.generators)))
    from server.demo import main as run

    # Converting the base model takes longer than the server's start: once for all demos, and `km serve`.
    models = settings.data_dir / "models"
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        models.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        fail(f"{models} cannot be made ({error.strerror}). Set KM_DATA_DIR to a directory of yours.")
    raise typer.Exit(run(fields, document, models))
