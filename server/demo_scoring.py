"""What the demo measures beside the answers' text: their likelihood, and the base model's exact tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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
    def for_data_dir(cls, http: httpx.Client, data_dir: Path) -> Self:
        """A scorer with the embedded base model's tokenizer, which the server has converted there."""
        from transformers import AutoTokenizer

        model = base_model.resolve(base_model.EMBEDDED, data_dir)
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
        self, model: str, title: str, questions: list[dict[str, Any]], contexts: list[str | None]
    ) -> float:
        """Mean negative log-likelihood per token of the first accepted answer, in nats. `contexts` is what
        stands in each question's prompt."""
        answers = [self.tokenizer.encode(one["answers"][0], add_special_tokens=False) for one in questions]
        prompts = [
            encode(self.tokenizer, answer_messages(one["question"], context=context, title=title))
            for one, context in zip(questions, contexts, strict=True)
        ]
        return self._mean_nll(model, prompts, answers)

    def _mean_nll(self, model: str, prompts: list[list[int]], answers: list[list[int]]) -> float:
        with ThreadPoolExecutor(4) as pool:
            nlls = list(pool.map(lambda pair: self._nll(model, *pair), zip(prompts, answers, strict=True)))
        return sum(nlls) / len(nlls)

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
