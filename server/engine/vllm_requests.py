"""Requests and results between the engine's port and vLLM."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

from server.engine.base import (
    Adapter,
    Delta,
    EngineUnavailableError,
    GenerationRequest,
    TokenLogprob,
    UnsupportedRequestError,
)
from server.engine.vllm_settings import SCHEMA_BACKEND

#: More tokens than any answer has: only an answer's first token and its end are reported.
_ONLY_FIRST_AND_LAST = 2**31 - 1


def check_length(request: GenerationRequest, max_model_len: int) -> None:
    """Raise ValueError when the prompt is empty or leaves no room for an answer. Lengths in tokens."""
    length = len(request.prompt_token_ids)
    if not length:
        raise ValueError("the prompt is empty: give at least one token")
    if length >= max_model_len:
        raise ValueError(
            f"the prompt has {length} tokens, which leaves no room in the {max_model_len} tokens that prompt "
            "and answer share: shorten it or raise KM_MAX_MODEL_LEN"
        )


def sampling(request: GenerationRequest, *, streaming: bool) -> Any:
    """vLLM's sampling parameters of a request. UnsupportedRequestError as `_held_to` says."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=list(request.stop),
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        # vLLM generates at least one token; scoring a prompt drops it.
        max_tokens=max(request.max_tokens, 1),
        ignore_eos=request.ignore_eos,
        logprobs=request.top_logprobs if request.logprobs else None,
        prompt_logprobs=request.top_logprobs if request.prompt_logprobs else None,
        structured_outputs=_held_to(request.json_schema),
        output_kind=RequestOutputKind.DELTA,
        stream_interval=None if streaming else _ONLY_FIRST_AND_LAST,
    )


def lora_request(adapter: Adapter | None) -> Any:
    """The adapter as vLLM wants it."""
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, adapter.engine_id, str(adapter.path))


def _held_to(json_schema: str | None) -> Any:
    if json_schema is None:
        return None
    if importlib.util.find_spec(SCHEMA_BACKEND) is None:
        raise UnsupportedRequestError(
            f"response_format: this server's engine cannot hold answers to a schema, since the package "
            f"{SCHEMA_BACKEND} is not installed. Leave response_format out, or have the package installed.",
            param="response_format",
        )
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(json=json_schema)


def delta_of(request: GenerationRequest, output: Any) -> Delta:
    """A piece of vLLM's output. When a prompt is only scored, without the token that vLLM writes anyway.

    Raises:
        EngineUnavailableError: the engine gave up on the request.
        UnsupportedRequestError: it could not make a grammar of the schema.
    """
    completion = output.outputs[0]
    scoring = request.max_tokens == 0
    token_ids = () if scoring else tuple(completion.token_ids)
    return Delta(
        text="" if scoring else completion.text,
        token_ids=token_ids,
        finish_reason=_finish_reason(request, output) if output.finished else None,
        logprobs=_logprobs(token_ids, () if scoring else completion.logprobs or (), request)
        if request.logprobs
        else None,
        prompt_logprobs=_logprobs(request.prompt_token_ids[1:], output.prompt_logprobs[1:], request)
        if request.prompt_logprobs and output.prompt_logprobs
        else None,
    )


def _finish_reason(request: GenerationRequest, output: Any) -> str:
    """Why it ended, "stop" or "length"."""
    if request.max_tokens == 0:
        return "length"
    reason = output.outputs[0].finish_reason
    if reason in ("stop", "length"):
        return str(reason)
    if reason == "error" and request.json_schema is not None:
        raise UnsupportedRequestError(
            "response_format: the engine cannot make a grammar of this schema. Simplify it.",
            param="response_format",
        )
    raise EngineUnavailableError(
        f"the engine ended the request early ({reason}): see its log, then ask again"
    )


def _logprobs(
    token_ids: Sequence[int], places: Sequence[Any], request: GenerationRequest
) -> tuple[TokenLogprob, ...]:
    """vLLM's log-probabilities: for each place the token that is there, then the likeliest ones."""
    return tuple(
        TokenLogprob(
            token_id,
            float(candidates[token_id].logprob),
            tuple(
                (other, float(candidate.logprob))
                for other, candidate in sorted(candidates.items(), key=lambda item: item[1].rank)
                if candidate.rank <= request.top_logprobs
            ),
        )
        for token_id, candidates in zip(token_ids, places, strict=True)
    )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """vLLM's errors as the port's."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        yield
    except VLLMClientError as error:
        raise UnsupportedRequestError(
            f"the engine does not take this request: {error}",
            param="response_format" if "schema" in str(error).lower() else None,
        ) from error
    except EngineDeadError as error:
        raise EngineUnavailableError(
            "the inference engine has died: see its log; it is started again by itself"
        ) from error
    except EngineGenerateError as error:
        raise EngineUnavailableError(
            f"the inference engine failed on this request: {error.__cause__}"
        ) from error
