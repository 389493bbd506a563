"""KEs come and go: registered when they fit, those that are shipped at the start, deleted without rest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from starlette.concurrency import run_in_threadpool

from km_registry.adapter_files import read_json
from km_registry.artifacts import MANIFEST, digest
from km_registry.base_model import BaseModel
from km_registry.errors import ArtifactError, InvalidKEError, NotFoundError
from km_registry.ke_records import KERecords
from km_registry.registry import Registry
from km_registry.types import KE
from server.errors import UnknownKEError
from server.fleet import Fleet
from server.kes import KEs
from server.letting_go import LettingGo
from server.replacing import PASSING

_log = structlog.get_logger(__name__)

#: KEs that come with the package: one directory for each, with the files of a KE.
SHIPPED = Path(__file__).parent / "shipped_kes"


class KEKeeper:
    """Registers and deletes KEs. A deletion that is cut short goes on after a restart."""

    def __init__(
        self, registry: Registry, base_model: BaseModel, kes: KEs, letting_go: LettingGo, fleet: Fleet
    ) -> None:
        self._registry = registry
        self._base_model = base_model
        self._kes = kes
        self._letting_go = letting_go
        self._fleet = fleet
        self._forgetting = asyncio.Lock()

    def all(self) -> list[KE]:
        """Every KE, for whatever base model. Blocking."""
        return self._registry.kes.all()

    def fits(self, ke: KE) -> bool:
        """Whether it can be asked for on this server."""
        return self._kes.fits(ke)

    def register(self, directory: Path, *, make_default: bool) -> tuple[KE, bool, str | None]:
        """Take in the KE in a directory: the KE, whether it is new, and what to beware of. Blocking.

        InvalidKEError when it does not fit.
        """
        ke, new = self._registry.kes.register(directory, self._base_model, make_default=make_default)
        _log.info("KE registered", ke_id=ke.id, name=ke.name, version=ke.version, new=new)
        return ke, new, self._kes.warning(ke)

    def set_default(self, ke_id: str) -> KE:
        """Make it the default for its base model. Blocking. UnknownKEError if there is none."""
        try:
            return self._registry.kes.set_default(ke_id)
        except NotFoundError as error:
            raise UnknownKEError(str(error), param="ke_id") from error

    async def forget(self, ke_id: str) -> dict[str, int]:
        """Delete a KE and everything made with it; counts and bytes. From the first step on nobody finds it.

        Answers that it has a part in are waited for. UnknownKEError if there is none.
        """
        try:
            ke = await run_in_threadpool(self._registry.kes.tombstone, ke_id)
        except NotFoundError as error:
            raise UnknownKEError(str(error), param="ke_id") from error
        # The client may go away; the deletion goes on.
        return await asyncio.shield(asyncio.create_task(self._forget(ke), name=f"forget {ke.id}"))

    async def resume(self) -> None:
        """Complete the deletions that were begun; what cannot be done now is left for the next call."""
        for ke in await run_in_threadpool(self._registry.kes.pending):
            try:
                await self._forget(ke)
            except PASSING as error:
                _log.warning("deletion of a KE not completed", ke_id=ke.id, error=type(error).__name__)

    async def _forget(self, ke: KE) -> dict[str, int]:
        evicted = await self._letting_go.ke(ke)
        await self._fleet.acknowledged([ke.id])
        async with self._forgetting:
            removed = await run_in_threadpool(self._registry.kes.purge, ke.id)
        _log.info("KE deleted", ke_id=ke.id, evicted=evicted.adapters)
        return removed


def register_shipped(records: KERecords, base_model: BaseModel, directory: Path = SHIPPED) -> list[KE]:
    """Register the KEs in the directory's directories that are for this base model and were never here.

    The first becomes the default, as does a newer one of the default's name. What is for another base model,
    or was deleted by an administrator, is passed over; what is damaged is logged. Blocking.
    """
    registered = []
    for manifest_file in sorted(directory.glob(f"*/{MANIFEST}")):
        try:
            manifest = read_json(manifest_file, "reinstall KM Server")
            if manifest.get("base_fingerprint") != base_model.fingerprint or records.had(digest(manifest)):
                continue
            default = records.default_for(base_model.fingerprint)
            make_default = default is None or default.name == manifest.get("name")
            ke, _ = records.register(manifest_file.parent, base_model, make_default=make_default)
            registered.append(ke)
        except (ArtifactError, InvalidKEError, KeyError) as error:
            _log.warning("a shipped KE is not registered", name=manifest_file.parent.name, reason=str(error))
    return registered
