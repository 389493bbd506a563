"""A hundred thousand documents on a real PostgreSQL: to authenticate, list, authorise, and find the KM."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from km_registry.config import RegistrySettings
from km_registry.errors import NotFoundError
from km_registry.events import MemoryNotifier
from km_registry.registry import Registry
from km_registry.tables import DocumentRow, GrantRow, JobRow, KMRow
from km_registry.types import Action, Principal
from tests.postgres import running

DOCUMENTS, USERS, GROUPS = 100_000, 200, 20
#: Of every document's grants: its owner's, a group's, and of one in four another user's.
_SHARED = 4
_AT_ONCE = 5_000
_FINGERPRINT = "f" * 64


def measure(*, tries: int, seed: int, documents: int = DOCUMENTS) -> dict[str, Any]:
    """Milliseconds of each look-up, median and 99th percentile, by users chosen at random."""
    rng = random.Random(seed)
    with running() as server, server.database() as url, tempfile.TemporaryDirectory() as folder:
        settings = RegistrySettings(data_dir=Path(folder), database_url=url, redis_url=None)
        with Registry.open(settings, MemoryNotifier()) as registry:
            began = time.perf_counter()
            users = _people(registry)
            with Session(registry._store.database.engine) as session:
                grants = _fill(session, [one.user_id for one, _ in users], _groups(registry), documents, rng)
            figures: dict[str, Any] = {"documents": documents, "grants": grants}
            print({**figures, "filled_s": round(time.perf_counter() - began, 1)}, flush=True)
            return figures | _timed(registry, users, documents, tries, rng)


def _people(registry: Registry) -> list[tuple[Principal, str]]:
    admin = Principal("usr_none", is_admin=True)
    found = []
    for number in range(USERS):
        user, secret = registry.create_user(f"User {number}")
        found.append((Principal(user.id), secret))
    for number in range(GROUPS):
        group = registry.people.create_group(admin, f"Group {number}")
        for user_number in range(number, USERS, GROUPS):
            registry.people.add_member(admin, group.id, f"User {user_number}")
    return found


def _groups(registry: Registry) -> list[str]:
    return [one.id for one in registry.people.groups(Principal("usr_none", is_admin=True))]


def _fill(session: Session, users: list[str], groups: list[str], documents: int, rng: random.Random) -> int:
    """Rows as uploads, trainings and sharing leave them; how many grants."""
    now, grants = datetime.now(UTC), 0
    for first in range(0, documents, _AT_ONCE):
        rows: dict[type, list[dict[str, Any]]] = {DocumentRow: [], JobRow: [], KMRow: [], GrantRow: []}
        for number in range(first, min(first + _AT_ONCE, documents)):
            _add(rows, number, users, groups, now, rng)
        for table, several in rows.items():
            session.execute(insert(table), several)
        grants += len(rows[GrantRow])
        session.commit()
    session.execute(text("ANALYZE"))
    session.commit()
    return grants


def _add(
    rows: dict[type, list[dict[str, Any]]],
    number: int,
    users: list[str],
    groups: list[str],
    now: datetime,
    rng: random.Random,
) -> None:
    document, owner = _id(number), rng.choice(users)
    sha256 = f"{number:064x}"
    common = {"created_at": now}
    rows[DocumentRow].append(
        common
        | {
            "id": document,
            "owner_id": owner,
            "title": f"Report {number}",
            "sha256": sha256,
            "size_bytes": 3000,
            "purged": {},
        }
    )
    job = f"job_{number:020d}"
    rows[JobRow].append(
        common
        | {"id": job, "document_id": document, "state": "succeeded", "attempt": 1, "stage": "done"}
        | {"step": 10, "total_steps": 10, "recipe": {}}
    )
    rows[KMRow].append(
        common
        | {"id": f"km_{number:020d}", "document_id": document, "job_id": job, "attempt": 1, "digest": sha256}
        | {"base_fingerprint": _FINGERPRINT, "metrics": {"recovered": 0.9}}
    )
    held = common | {"document_id": document, "user_id": None, "group_id": None}
    rows[GrantRow].append(held | {"user_id": owner, "role": "owner"})
    rows[GrantRow].append(held | {"group_id": rng.choice(groups), "role": "reader"})
    if number % _SHARED == 0:
        other = rng.choice([user for user in users if user != owner])
        rows[GrantRow].append(held | {"user_id": other, "role": "reader"})


def _id(number: int) -> str:
    return f"doc_{number:020d}"


def _timed(
    registry: Registry, users: list[tuple[Principal, str]], documents: int, tries: int, rng: random.Random
) -> dict[str, Any]:
    def authenticate() -> None:
        principal, secret = rng.choice(users)
        found = registry.authenticate(secret)
        assert found is not None
        assert found.user_id == principal.user_id

    def list_page() -> None:
        assert len(registry.list_documents(rng.choice(users)[0], limit=50)) == 50

    def authorise() -> None:
        try:
            registry.get_document(rng.choice(users)[0], _id(rng.randrange(documents)), Action.READ)
        except NotFoundError:
            return

    def resolve() -> None:
        assert registry.km_of(_id(rng.randrange(documents))) is not None

    calls: dict[str, Callable[[], None]] = {
        "authenticate": authenticate,
        "list": list_page,
        "authorise": authorise,
        "resolve": resolve,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    # In turn, so that what goes on beside it concerns all alike.
    for _ in range(tries):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - began) * 1000)
    return {
        name: {
            "p50_ms": round(float(np.percentile(took, 50)), 2),
            "p99_ms": round(float(np.percentile(took, 99)), 2),
        }
        for name, took in times.items()
    }
