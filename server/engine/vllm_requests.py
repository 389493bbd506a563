"""Requests and results between the engine's port and vLLM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from server.engine.base import EngineUnavailableError, GenerationRequest


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
    """vLLM's sampling parameters of a request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=list(request.stop),
        # vLLM generates at least one token; scoring a prompt drops it.
        max_tokens=max(request.max_tokens, 1),
        ignore_eos=request.ignore_eos,
        prompt_logprobs=0 if request.prompt_logprobs else None,
        output_kind=RequestOutputKind.DELTA if streaming else RequestOutputKind.FINAL_ONLY,
    )


def finish_reason(completion: Any) -> str:
    """Why it ended, "stop" or "length"; EngineUnavailableError when the engine gave up on it."""
    reason = completion.finish_reason
    if reason not in ("stop", "length"):
        raise EngineUnavailableError(
            f"the engine ended the request early ({reason}): see its log, then ask again"
        )
    return str(reason)


def prompt_logprobs(request: GenerationRequest, logprobs: Any) -> tuple[float, ...]:
    """Log-probability of every prompt token but the first, which has none."""
    pairs = zip(request.prompt_token_ids[1:], logprobs[1:], strict=True)
    return tuple(float(candidates[token].logprob) for token, candidates in pairs)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """vLLM's errors as the port's."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        yield
    except EngineDeadError as error:
        raise EngineUnavailableError(
            "the inference engine has died: see its log, then restart the server"
        ) from error
    except EngineGenerateError as error:
        raise EngineUnavailableError(
            f"the inference engine failed on this request: {error.__cause__}"
        ) from error
