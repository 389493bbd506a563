"""Where log lines go: all of them to the data directory, what a person must act on to stderr too."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import structlog

_MAX_BYTES = 10_000_000
_SHARED: list[structlog.types.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def configure(directory: Path, stderr: TextIO) -> None:
    """Send every log line to `directory`/server.log as JSON, and our warnings to `stderr` too."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    file = logging.handlers.RotatingFileHandler(
        directory / "server.log", maxBytes=_MAX_BYTES, backupCount=2, encoding="utf-8"
    )
    file.setFormatter(_formatter(structlog.processors.JSONRenderer()))
    person = logging.StreamHandler(stderr)
    person.setLevel(logging.WARNING)
    person.addFilter(_ours)
    person.setFormatter(_formatter(structlog.dev.ConsoleRenderer(colors=stderr.isatty())))
    root = logging.getLogger()
    root.handlers = [file, person]
    root.setLevel(logging.INFO)
    # At INFO it logs what a tool was called with, and so questions.
    logging.getLogger("mcp").setLevel(logging.WARNING)


def _ours(record: logging.LogRecord) -> bool:
    """Whether a person at the terminal should see it: a library's warnings are for the log file."""
    return record.levelno >= logging.ERROR or record.name.split(".")[0] in ("server", "km_registry")


def _formatter(renderer: structlog.types.Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )


@contextmanager
def diverted_output(path: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Send what this process and its children write to stdout and stderr to a file.

    Yields the true stdout and stderr. Engines print from C++ and from processes of their own, which
    no logging configuration reaches. The file of the run before is kept as `path`.1.
    """
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))
    sys.stdout.flush()
    sys.stderr.flush()
    true = [os.dup(1), os.dup(2)]
    diverted = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(diverted, 1)
    os.dup2(diverted, 2)
    os.close(diverted)
    try:
        with (
            os.fdopen(os.dup(true[0]), "w", encoding=sys.stdout.encoding, buffering=1) as out,
            os.fdopen(os.dup(true[1]), "w", encoding=sys.stderr.encoding, buffering=1) as err,
        ):
            yield out, err
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in zip((1, 2), true, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
