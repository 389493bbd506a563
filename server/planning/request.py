"""A question on its way."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.planning.workload import Mode


@dataclass(slots=True, eq=False)
class Request:
    """Times in seconds of the simulation; what is not known yet is infinite."""

    number: int
    mode: Mode
    document: int
    adapter: int | None
    prompt_tokens: int
    answer_tokens: float
    #: Tokens that come after the first, or all where the prompt brings none.
    steps: float
    came: float
    replica: str = ""
    first_token: float = field(default=float("inf"))

    @property
    def context_tokens(self) -> float:
        """What the answer looks back on, on average."""
        return self.prompt_tokens + self.answer_tokens / 2
