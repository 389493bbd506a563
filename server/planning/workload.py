"""What is asked of an installation: how many documents, how often which, and how."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

from pydantic import Field, field_validator

from server.planning.models import Strict

Mode = Literal["base", "icl", "km", "km+rag", "rag"]
#: Modes that need the document's KM.
WITH_KM = frozenset({"km", "km+rag"})
WITH_PASSAGES = frozenset({"rag", "km+rag"})


class Workload(Strict):
    """Questions, documents and targets."""

    documents: int = Field(1000, ge=1, le=1_000_000)
    zipf: float = Field(
        1.0, ge=0, le=10, description="the document of rank r is asked in proportion to r^-zipf"
    )
    questions_per_s: float = Field(1.0, gt=0)
    uploads_per_day: float = Field(50.0, ge=0)
    document_tokens: int = Field(3000, ge=1)
    question_tokens: int = Field(32, ge=1, description="of the prompt, passages and document left out")
    answer_tokens: int = Field(64, ge=1, description="on average")
    answer_lengths: Literal["fixed", "exponential"] = "exponential"
    mix: dict[Mode, float] = Field(default={"km": 1.0}, description="how often each mode is asked")
    gateways: int = Field(1, ge=1)
    first_token_p95_s: float = Field(2.0, gt=0, description="what 95 of 100 first tokens must come within")
    trained_p95_s: float = Field(4 * 3600.0, gt=0, description="what 95 of 100 KMs must be trained within")

    @field_validator("mix")
    @classmethod
    def _some_of_each(cls, mix: dict[Mode, float]) -> dict[Mode, float]:
        if not mix or any(share <= 0 for share in mix.values()):
            raise ValueError("every mode that is named needs a share above 0, like km=3,rag=1")
        return mix

    @property
    def cumulative_popularity(self) -> list[float]:
        """Sums of the documents' shares of questions, the most popular first; the last is 1."""
        weights = [rank**-self.zipf for rank in range(1, self.documents + 1)]
        total = sum(weights)
        return [part / total for part in accumulate(weights)]

    def best_hit_rate(self, slots: int) -> float:
        """The most of the questions that so many slots can answer, however they are used.

        It is the share of the most popular documents, as many as there are slots: where questions come
        independently of each other no policy does better that does not know what comes next.
        """
        return self.cumulative_popularity[min(slots, self.documents) - 1]
