"""`python -m trainer_worker`: one worker. Everything it needs comes from the environment."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import structlog
from pydantic import ValidationError

from km_registry.config import RegistrySettings
from km_registry.errors import KMError
from km_registry.setting_origins import settings_in_force
from trainer_worker.config import TrainerSettings


def main() -> int:
    """Read the settings, import what jobs need, work until stopped. Exit code 2 when it cannot start."""
    try:
        settings = TrainerSettings()
    except (ValidationError, KMError) as error:
        sys.stderr.write(f"km worker: {error}\n")
        return 2
    if sys.argv[1:] == ["--settings"]:
        return _tell(settings)
    _configure_logs()
    os.nice(settings.niceness)
    # How long OpenMP's threads spin before they sleep. By default longer than the engine can spare: with both
    # at work on the same cores a step took thirty times as long. Not at all costs a step half as much again,
    # since there are thousands of short parallel regions in it. This is some 30 µs.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # The tokenizer's threads would not survive the fork, and it warns about that.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Imported before the children are forked, so that no job waits for it. Importing starts no threads.
    import trainer_worker.pipeline  # noqa: F401
    from trainer_worker.worker import work
    from trainer_worker.workshop import preload

    preload()
    try:
        work(settings)
    except KMError as error:
        sys.stderr.write(f"km worker: {error}\n")
        return 2
    return 0


def _tell(settings: TrainerSettings) -> int:
    """Print as JSON what is in force of the settings that only workers have: `km config` shows them too."""
    own = set(TrainerSettings.model_fields) - set(RegistrySettings.model_fields)
    told = [asdict(one) for one in settings_in_force(settings, names=own)]
    sys.stdout.write(json.dumps(told))
    return 0


def _configure_logs() -> None:
    """Lines for worker.log. Tracebacks without the values of variables: those are the document's text."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ]
    )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All that needs an orderly end has had it; to take torch and its relatives down takes Python seconds.
    os._exit(code)
