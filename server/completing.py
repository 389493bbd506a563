"""OpenAI-compatible completions: read the prompts, run them together, in order, whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.concurrency import run_in_threadpool

from server.answering import ensure_fits
from server.callers import Caller
from server.engine.base import Delta, Engine, Generation, GenerationRequest, TokenLogprob
from server.errors import InvalidRequestError
from server.generating import Generating
from server.logprobs import for_completion, in_the_text
from server.model_names import Asked, Models
from server.schemas_openai import (
    MAX_PROMPTS,
    ChoiceOut,
    CompletionIn,
    CompletionOut,
    GenerationIn,
    LogprobsOut,
    UsageOut,
)
from server.tokenizer import Tokenizer

_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class _Prompt:
    text: str
    token_ids: tuple[int, ...]


class Completer:
    """Completes prompts. One for each server."""

    def __init__(self, models: Models, generating: Generating, engine: Engine, tokenizer: Tokenizer) -> None:
        self._models = models
        self._generating = generating
        self._engine = engine
        self._tokenizer = tokenizer

    async def complete(self, caller: Caller, sent: CompletionIn) -> CompletionOut:
        """Complete every prompt `n` times. Cancelling the awaiting task aborts all of them.

        Raises NotFoundError, NotTrainedError, ForbiddenError, InvalidRequestError, PromptTooLongError,
        UnsupportedRequestError or EngineUnavailableError.
        """
        async with self._models.asked(caller, sent.model) as asked:
            prompts = await run_in_threadpool(self._prompts, sent)
            requests = self._requests(sent, asked, prompts)
            found = await self._generating.whole(asked.mode, requests)
        writings = self._writings(sent, prompts)
        return CompletionOut(
            **head("cmpl", sent.model),
            choices=[
                writing.choice(whole_as_delta(one)) for writing, one in zip(writings, found, strict=True)
            ],
            usage=usage(
                sum(len(prompt.token_ids) for prompt in prompts), sum(len(one.token_ids) for one in found)
            ),
        )

    async def stream(self, caller: Caller, sent: CompletionIn) -> AsyncGenerator[dict[str, Any], None]:
        """The same, piece by piece, as OpenAI's chunks. Raises like `complete`; closing it aborts all."""
        envelope = head("cmpl", sent.model) | {"object": "text_completion"}
        async with self._models.asked(caller, sent.model) as asked:
            prompts = await run_in_threadpool(self._prompts, sent)
            writings = self._writings(sent, prompts)
            pieces = self._generating.pieces(asked.mode, self._requests(sent, asked, prompts))
            written = 0
            async with aclosing(pieces):
                async for index, delta in pieces:
                    written += len(delta.token_ids)
                    yield envelope | {"choices": [writings[index].choice(delta).model_dump()]}
        if sent.stream_options.include_usage:
            read = sum(len(prompt.token_ids) for prompt in prompts)
            yield envelope | {"choices": [], "usage": usage(read, written).model_dump()}

    def _requests(self, sent: CompletionIn, asked: Asked, prompts: list[_Prompt]) -> list[GenerationRequest]:
        scored = sent.logprobs is not None
        return [
            request_for(
                sent,
                asked,
                prompt.token_ids,
                number,
                max_tokens=sent.max_tokens,
                logprobs=scored,
                prompt_logprobs=scored and sent.echo,
                top_logprobs=sent.logprobs or 0,
            )
            for prompt in prompts
            for number in range(sent.n)
        ]

    def _writings(self, sent: CompletionIn, prompts: list[_Prompt]) -> list[_Writing]:
        each = [prompt for prompt in prompts for _ in range(sent.n)]
        return [_Writing(sent, index, prompt, self._tokenizer) for index, prompt in enumerate(each)]

    def _prompts(self, sent: CompletionIn) -> list[_Prompt]:
        if sent.max_tokens == 0 and not sent.echo:
            raise InvalidRequestError(
                "max_tokens: 0 writes nothing. Ask for at least 1, or set echo and logprobs to score.",
                param="max_tokens",
            )
        prompts = [self._read(prompt, sent.add_special_tokens) for prompt in _listed(sent.prompt)]
        for prompt in prompts:
            ensure_fits(
                len(prompt.token_ids),
                # The engine always writes one token.
                max(1, sent.max_tokens),
                self._engine.max_model_len,
                remedy="Shorten the prompt or lower max_tokens.",
            )
        return prompts

    def _read(self, prompt: str | list[int], add_special_tokens: bool) -> _Prompt:
        if isinstance(prompt, str):
            token_ids = self._tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
            if not token_ids:
                raise InvalidRequestError("prompt: it is empty. Send at least one token.", param="prompt")
            return _Prompt(prompt, tuple(token_ids))
        if max(prompt) >= len(self._tokenizer):
            raise InvalidRequestError(
                f"prompt: token id {max(prompt)} is not in the vocabulary, whose ids are below "
                f"{len(self._tokenizer)}.",
                param="prompt",
            )
        return _Prompt(self._tokenizer.decode(prompt), tuple(prompt))


@dataclass(slots=True)
class _Writing:
    """One choice as it comes. The first piece of an echo begins with the prompt."""

    sent: CompletionIn
    index: int
    prompt: _Prompt
    tokenizer: Tokenizer
    begun: bool = False
    #: Where the next token begins, in characters.
    offset: int = 0

    def choice(self, delta: Delta) -> ChoiceOut:
        """What this piece adds."""
        echoes = self.sent.echo and not self.begun
        self.begun = True
        return ChoiceOut(
            index=self.index,
            text=self.prompt.text + delta.text if echoes else delta.text,
            logprobs=None if self.sent.logprobs is None else self._logprobs(delta, echoes),
            finish_reason=delta.finish_reason,
        )

    def _logprobs(self, delta: Delta, echoes: bool) -> LogprobsOut:
        told: list[TokenLogprob | int] = [
            *in_the_text(delta.logprobs or (), delta.finish_reason, self.tokenizer)
        ]
        if echoes:
            told = [self.prompt.token_ids[0], *(delta.prompt_logprobs or ()), *told]
        found = for_completion(told, self.tokenizer, offset=self.offset, top=self.sent.logprobs or 0)
        self.offset += sum(map(len, found.tokens))
        return found


def request_for(
    sent: GenerationIn, asked: Asked, prompt: tuple[int, ...], number: int, **fields: Any
) -> GenerationRequest:
    """The engine's request for choice `number` of a prompt."""
    return GenerationRequest(
        prompt_token_ids=prompt,
        temperature=sent.temperature,
        top_p=sent.top_p,
        frequency_penalty=sent.frequency_penalty,
        presence_penalty=sent.presence_penalty,
        # The same seed for every choice would make them all the same.
        seed=None if sent.seed is None else (sent.seed + number) % _SEEDS,
        stop=tuple(text for text in sent.stop if text),
        adapter=asked.adapter,
        priority=asked.priority,
        cache_salt=asked.cache_salt,
        caller=asked.caller,
        claim=asked.claim,
        **fields,
    )


def head(kind: str, model: str) -> dict[str, Any]:
    """What every piece of one response says."""
    return {"id": f"{kind}-{uuid4().hex}", "created": int(time.time()), "model": model}


def usage(read: int, written: int) -> UsageOut:
    """Tokens of a request."""
    return UsageOut(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def whole_as_delta(one: Generation) -> Delta:
    """A whole answer as a stream of one piece."""
    return Delta(one.text, one.token_ids, one.finish_reason, one.logprobs, one.prompt_logprobs)


def _listed(prompt: Any) -> list[str | list[int]]:
    """One prompt or many, as a list. InvalidRequestError says which shapes are taken."""
    if isinstance(prompt, str) or _is_token_ids(prompt):
        return [prompt]
    if isinstance(prompt, list) and not 0 < len(prompt) <= MAX_PROMPTS:
        raise InvalidRequestError(
            f"prompt: {len(prompt)} prompts were sent. Send 1 to {MAX_PROMPTS} in one request.",
            param="prompt",
        )
    if isinstance(prompt, list) and (
        all(isinstance(item, str) for item in prompt) or all(_is_token_ids(item) for item in prompt)
    ):
        return prompt
    raise InvalidRequestError(
        "prompt: send a text, a list of token ids (integers from 0), or a list of either.",
        param="prompt",
    )


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)
