"""OpenAI-compatible chats: read the conversation, answer it, whole or as a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from jinja2 import TemplateError
from starlette.concurrency import run_in_threadpool

from km_registry.prompts import Message, answer_messages, encode
from km_registry.types import Principal
from server.answering import ensure_fits
from server.completing import head, request_for, usage
from server.config import ServerSettings
from server.engine.base import Engine, Generation, GenerationRequest, TokenLogprob
from server.errors import InvalidRequestError
from server.generating import Generating
from server.logprobs import for_chat, in_the_text
from server.model_names import Asked, Models
from server.schemas_chat import (
    ChatChoiceOut,
    ChatIn,
    ChatLogprobsOut,
    ChatMessageOut,
    ChatOut,
    JsonFormatIn,
    MessageIn,
    SchemaFormatIn,
)
from server.tokenizer import Tokenizer

#: Longest JSON schema, in characters: grammars are made of it while others wait.
MAX_SCHEMA_CHARS = 32_768
_ANY_OBJECT = '{"type": "object"}'


class Chatter:
    """Answers conversations. One for each server."""

    def __init__(
        self,
        models: Models,
        generating: Generating,
        engine: Engine,
        tokenizer: Tokenizer,
        settings: ServerSettings,
    ) -> None:
        self._models = models
        self._generating = generating
        self._engine = engine
        self._tokenizer = tokenizer
        self._settings = settings

    async def answer(self, principal: Principal, sent: ChatIn) -> ChatOut:
        """Answer `n` times. Cancelling the awaiting task aborts all of them.

        Raises NotFoundError, NotTrainedError, InvalidRequestError, PromptTooLongError,
        UnsupportedRequestError or EngineUnavailableError.
        """
        async with self._models.asked(principal, sent.model) as asked:
            requests = await run_in_threadpool(self._requests, sent, asked)
            found = await self._generating.whole(asked.mode, requests)
        return ChatOut(
            **head("chatcmpl", sent.model),
            choices=[self._choice(sent, index, one) for index, one in enumerate(found)],
            usage=usage(found[0].prompt_tokens, sum(len(one.token_ids) for one in found)),
        )

    async def stream(self, principal: Principal, sent: ChatIn) -> AsyncGenerator[dict[str, Any], None]:
        """The same, piece by piece, as OpenAI's chunks. Raises like `answer`; closing it aborts all."""
        envelope = head("chatcmpl", sent.model) | {"object": "chat.completion.chunk"}

        def chunk(index: int, delta: dict[str, Any], **told: Any) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            return envelope | {"choices": [choice | told]}

        async with self._models.asked(principal, sent.model) as asked:
            requests = await run_in_threadpool(self._requests, sent, asked)
            pieces = self._generating.pieces(asked.mode, requests)
            begun: set[int] = set()
            written = 0
            async with aclosing(pieces):
                async for index, delta in pieces:
                    written += len(delta.token_ids)
                    if index not in begun:
                        begun.add(index)
                        yield chunk(index, {"role": "assistant", "content": ""})
                    told = self._logprobs(sent, delta.logprobs, delta.finish_reason)
                    if delta.text or told:
                        logprobs = told.model_dump() if told else None
                        yield chunk(index, {"content": delta.text}, logprobs=logprobs)
                    if delta.finish_reason:
                        yield chunk(index, {}, finish_reason=delta.finish_reason)
        if sent.stream_options.include_usage:
            read = len(requests[0].prompt_token_ids)
            yield envelope | {"choices": [], "usage": usage(read, written).model_dump()}

    def _choice(self, sent: ChatIn, index: int, one: Generation) -> ChatChoiceOut:
        return ChatChoiceOut(
            index=index,
            message=ChatMessageOut(content=one.text),
            logprobs=self._logprobs(sent, one.logprobs, one.finish_reason),
            finish_reason=one.finish_reason,
        )

    def _logprobs(
        self, sent: ChatIn, logprobs: Sequence[TokenLogprob] | None, finish_reason: str | None
    ) -> ChatLogprobsOut | None:
        if not sent.logprobs:
            return None
        return for_chat(in_the_text(logprobs or (), finish_reason, self._tokenizer), self._tokenizer)

    def _requests(self, sent: ChatIn, asked: Asked) -> list[GenerationRequest]:
        """One for every answer. Blocking."""
        prompt = self._prompt(sent.messages, to_km=asked.adapter is not None)
        limit = self._engine.max_model_len
        wanted = sent.max_completion_tokens or sent.max_tokens
        ensure_fits(len(prompt), wanted or 1, limit, remedy="Shorten the conversation or lower max_tokens.")
        fields = {
            "max_tokens": wanted or min(self._settings.max_answer_tokens, limit - len(prompt)),
            "logprobs": sent.logprobs,
            "top_logprobs": sent.top_logprobs,
            "json_schema": _schema(sent),
        }
        return [request_for(sent, asked, prompt, number, **fields) for number in range(sent.n)]

    def _prompt(self, messages: Sequence[MessageIn], *, to_km: bool) -> tuple[int, ...]:
        try:
            return tuple(encode(self._tokenizer, _conversation(messages, to_km=to_km)))
        except TemplateError as error:
            raise InvalidRequestError(
                f"messages: the model's chat template does not take this conversation ({error}).",
                param="messages",
            ) from error


def _conversation(messages: Sequence[MessageIn], *, to_km: bool) -> list[Message]:
    """The conversation as it is; but one plain question to a KM in the very form that KMs are trained for."""
    if to_km and len(messages) == 1 and messages[0].role == "user":
        return answer_messages(messages[0].text)
    return [
        {"role": "system" if message.role == "developer" else message.role, "content": message.text}
        for message in messages
    ]


def _schema(sent: ChatIn) -> str | None:
    match sent.response_format:
        case JsonFormatIn():
            return _ANY_OBJECT
        case SchemaFormatIn() as held:
            schema = json.dumps(held.json_schema.schema_)
            if len(schema) > MAX_SCHEMA_CHARS:
                raise InvalidRequestError(
                    f"response_format: the schema has {len(schema)} characters, and at most "
                    f"{MAX_SCHEMA_CHARS} are taken. Simplify it.",
                    param="response_format",
                )
            return schema
        case _:
            return None
