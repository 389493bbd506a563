"""How much of what the context tells the model the KM tells it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer_worker.pairs import Pair, mean_kl


@dataclass(frozen=True, slots=True)
class Recovered:
    """1 − KL(teacher‖student with KM) / KL(teacher‖student without), and its two parts in nats."""

    recovered: float
    kl_base: float
    kl_km: float


def recovered(model: Any, heldout: Sequence[Pair], *, batch_tokens: int) -> Recovered:
    """Measure on held-out targets. 0 is a KM that gives nothing, 1 one that gives all the context does.

    Raises:
        ValueError: there are no held-out targets.
    """
    if not heldout:
        raise ValueError("recovered needs held-out targets")
    kl_base = mean_kl(model, heldout, with_km=False, batch_tokens=batch_tokens)
    kl_km = mean_kl(model, heldout, with_km=True, batch_tokens=batch_tokens)
    # Where the context tells the model nothing there is nothing to recover.
    share = 1 - kl_km / kl_base if kl_base > 1e-9 else 0.0
    return Recovered(round(share, 4), round(kl_base, 4), round(kl_km, 4))
