"""How many replicas Ray Serve keeps: by the requests there are, and by how long first tokens take."""

from __future__ import annotations

import math
from typing import Any


class Scaling:
    """Serve's autoscaling policy, which it calls with an AutoscalingContext every few seconds."""

    def __init__(self, *, target_requests: float, target_first_token_s: float | None = None) -> None:
        """As many replicas as give each `target_requests` at a time; one more while first tokens take longer
        than `target_first_token_s` on average."""
        self._target_requests = target_requests
        self._target_first_token_s = target_first_token_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas, between those that the deployment bounds, and what to remember: nothing."""
        wanted = math.ceil(context.total_num_requests / self._target_requests)
        waits = (context.aggregated_metrics or {}).get("first_token_s", {}).values()
        slow = self._target_first_token_s and waits and sum(waits) / len(waits) > self._target_first_token_s
        if slow and context.total_num_requests:
            wanted = max(wanted, context.current_num_replicas + 1)
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(most, max(least, wanted)), {}
