"""Log-probabilities in OpenAI's two shapes: that of completions and that of chats."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.base import TokenLogprob
from server.schemas_chat import ChatLogprobsOut, ChatTokenOut, TopTokenOut
from server.schemas_openai import LogprobsOut
from server.tokenizer import Tokenizer

#: What a tokenizer writes for a part of a character.
_INCOMPLETE = "\ufffd"


def in_the_text(
    logprobs: Sequence[TokenLogprob], finish_reason: str | None, tokenizer: Tokenizer
) -> Sequence[TokenLogprob]:
    """Those of the tokens that are in the text: not of the model's own mark of its end."""
    if finish_reason == "stop" and logprobs:
        last = [logprobs[-1].token_id]
        if not tokenizer.decode(last, skip_special_tokens=True):
            return logprobs[:-1]
    return logprobs


def for_completion(
    logprobs: Sequence[TokenLogprob | int], tokenizer: Tokenizer, *, offset: int, top: int
) -> LogprobsOut:
    """In the shape of completions, from character `offset` on. A bare token id is a token without one."""
    ids = [one if isinstance(one, int) else one.token_id for one in logprobs]
    tokens = [tokenizer.decode([token_id]) for token_id in ids]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return LogprobsOut(
        tokens=tokens,
        token_logprobs=[None if isinstance(one, int) else one.logprob for one in logprobs],
        top_logprobs=[_by_text(one, tokenizer) for one in logprobs] if top else None,
        text_offset=offsets,
    )


def _by_text(one: TokenLogprob | int, tokenizer: Tokenizer) -> dict[str, float] | None:
    if isinstance(one, int):
        return None
    found: dict[str, float] = {}
    for token_id, logprob in (*one.top, (one.token_id, one.logprob)):
        # Of several tokens with the same text, the likeliest.
        found.setdefault(tokenizer.decode([token_id]), logprob)
    return found


def for_chat(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer) -> ChatLogprobsOut:
    """In the shape of chats."""

    def top_token(token_id: int, logprob: float) -> TopTokenOut:
        text = tokenizer.decode([token_id])
        bytes_ = None if _INCOMPLETE in text else list(text.encode())
        return TopTokenOut(token=text, logprob=logprob, bytes=bytes_)

    return ChatLogprobsOut(
        content=[
            ChatTokenOut(
                **top_token(one.token_id, one.logprob).model_dump(),
                top_logprobs=[top_token(*pair) for pair in one.top],
            )
            for one in logprobs
        ]
    )
