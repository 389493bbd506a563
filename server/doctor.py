"""`km doctor`: the registry's examination and that of what the server keeps beside it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from km_registry.artifacts import purge_dir
from km_registry.config import RegistrySettings
from km_registry.doctor import examination
from km_registry.doctor.findings import Finding
from km_registry.events import NullNotifier
from km_registry.store.gateways import living
from km_registry.store.store import Store
from server.startup import ServeError, data_directory

#: What a running server is about to make or remove looks wrong for less than this.
_PASSING_S = 3.0


def passages(store: Store) -> Iterator[Finding]:
    """Every index of passages is byte for byte what was written."""
    for directory in sorted(store.layout.passages.glob("*/*")):
        problem = _problem(directory)
        if problem is not None and directory.is_dir():
            yield Finding(
                str(directory.relative_to(store.layout.root)),
                problem,
                "it will be removed, and made anew when it is needed",
                partial(purge_dir, directory),
            )


CHECKS = (*examination.CHECKS, passages)


def examined(settings: RegistrySettings) -> Iterable[Finding]:
    """What is wrong. Beside a running server it looks twice, since what is under way looks wrong at times."""
    store = Store.open(settings, NullNotifier())
    try:
        found = examination.examine(store, CHECKS)
        if found and (_is_served(settings.data_dir) or living(store)):
            time.sleep(_PASSING_S)
            before = set(found)
            found = [finding for finding in examination.examine(store, CHECKS) if finding in before]
        return found
    finally:
        store.database.close()


def repaired(settings: RegistrySettings) -> Iterator[tuple[Finding, bool]]:
    """Mend what is wrong; each finding and whether it was mended. ServeError while a server runs."""
    with data_directory(settings.data_dir):
        store = Store.open(settings, NullNotifier())
        try:
            if hosts := sorted({one.host for one in living(store)}):
                raise ServeError(
                    f"Servers on {', '.join(hosts)} use this database. Stop them first (one that was killed "
                    "counts for 15 seconds more)."
                )
            for outcome in examination.repair(examination.examine(store, CHECKS)):
                yield outcome.finding, outcome.repaired
        finally:
            store.database.close()


def _is_served(data_dir: Path) -> bool:
    try:
        with data_directory(data_dir):
            return False
    except ServeError:
        return True


def _problem(directory: Path) -> str | None:
    try:
        files = json.loads((directory / "manifest.json").read_bytes())["files"]
        present = {path.name for path in directory.iterdir()} - {"manifest.json"}
        if present != set(files):
            return "its files are not those of its manifest"
        for name, sha256 in files.items():
            if hashlib.sha256((directory / name).read_bytes()).hexdigest() != sha256:
                return f"{name} was altered"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return None
