"""What the demo measures beside the answers' text: their likelihood, and the base model's exact tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from km_registry import base_model
from km_registry.prompts import answer_messages, encode


@dataclass(slots=True)
class Scorer:
    """Asks the server's completion route with token ids, so that prompt and answer meet exactly."""

    http: httpx.Client
    tokenizer: Any

    @classmethod
    def for_data_dir(cls, http: httpx.Client, directory: Path) -> Self:
        """A scorer with the embedded base model's tokenizer, which the server has converted there."""
        from transformers import AutoTokenizer

        model = base_model.resolve(base_model.EMBEDDED, directory / "data")
        return cls(http, AutoTokenizer.from_pretrained(model.path))

    def base_tokens(self, questions: list[str], max_tokens: int) -> list[list[str]]:
        """The base model's greedy tokens for each question, asked one after the other."""
        found = []
        for question in questions:
            prompt = encode(self.tokenizer, answer_messages(question))
            choice = self._complete("base", prompt, max_tokens=max_tokens)
            found.append(choice["logprobs"]["tokens"])
        return found

    def answer_nll(
        self, document_id: str, title: str, text: str, questions: list[dict[str, Any]]
    ) -> dict[str, float]:
        """Mean negative log-likelihood per token of the first accepted answer, by mode, in nats."""
        totals = {"base": 0.0, "icl": 0.0, "km": 0.0}
        for asked in questions:
            bare = encode(self.tokenizer, answer_messages(asked["question"]))
            full = encode(self.tokenizer, answer_messages(asked["question"], context=text, title=title))
            answer = self.tokenizer.encode(asked["answers"][0], add_special_tokens=False)
            totals["base"] += self._nll("base", bare, answer)
            totals["icl"] += self._nll("base", full, answer)
            totals["km"] += self._nll(document_id, bare, answer)
        return {mode: total / len(questions) for mode, total in totals.items()}

    def _nll(self, model: str, prompt: list[int], answer: list[int]) -> float:
        choice = self._complete(model, prompt + answer, max_tokens=0, echo=True)
        logprobs = choice["logprobs"]["token_logprobs"][-len(answer) :]
        return -float(sum(logprobs)) / len(answer)

    def _complete(self, model: str, prompt: list[int], **options: Any) -> dict[str, Any]:
        body = {"model": model, "prompt": prompt, "temperature": 0, "logprobs": 1, **options}
        response = self.http.post("/v1/completions", json=body)
        response.raise_for_status()
        choice: dict[str, Any] = response.json()["choices"][0]
        return choice
