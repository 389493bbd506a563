"""What planning may refuse."""

from __future__ import annotations


class PlanningError(ValueError):
    """The profile, the workload or the target cannot be planned for; says why and what to change."""
