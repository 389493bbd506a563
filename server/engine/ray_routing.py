"""Ray Serve's request router for adapters: to where the adapter probably is; and what is meant for one
replica goes to that one."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from server.engine.base import Adapter, GenerationRequest
from server.engine.ray_live import register, told
from server.engine.routing import Router


class ResidencyRequestRouter(RequestRouter):  # type: ignore[misc]
    """Ranks replicas by `server.engine.routing`. Serve makes one in every process that has a handle."""

    def initialize_state(self, *, slots: int) -> None:
        """Called by Serve with what the deployment names."""
        self._adapters = Router(slots=slots, told=True)
        register(self.app_name, self)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas, each a rank of its own, best first."""
        if pending_request is None:
            return [candidate_replicas]
        live = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if meant := live.get(pending_request.kwargs.get("to", "")):
            return [[meant]]
        loads = {
            name: self.replica_queue_len_cache.get(replica.replica_id) or 0 for name, replica in live.items()
        }
        wanted = _adapter_name(pending_request.args)
        return [[live[name]] for name in self._adapters.rank(wanted, loads, told(candidate_replicas))]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, _result: Any) -> None:
        """Called by Serve once a replica has the request."""
        if "to" not in pending_request.kwargs:
            self._adapters.sent(_adapter_name(pending_request.args), replica_id.unique_id)


def _adapter_name(args: Any) -> str | None:
    match args[0] if args else None:
        case GenerationRequest(adapter=Adapter(name=name)) | Adapter(name=name):
            return str(name)
        case _:
            return None
