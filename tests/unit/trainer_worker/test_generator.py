"""The generator's client, against a transport that plays the endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from km_registry.errors import KMError
from trainer_worker.generator import Generator, GeneratorError

URL = "http://generator.test/v1"


def client(handler: Callable[[httpx.Request], httpx.Response], *, key: str = "km_secret") -> Generator:
    return Generator(URL + "/", key, model="base", timeout=5, transport=httpx.MockTransport(handler))


def complete(generator: Generator, prompts: list[str], **fields: Any) -> list[list[str]]:
    with generator:
        return generator.complete(
            prompts, **({"n": 1, "max_tokens": 7, "temperature": 0.5, "seed": 11} | fields)
        )


def echo(request: httpx.Request) -> httpx.Response:
    """`n` texts for each prompt, in an order of the endpoint's own."""
    body = json.loads(request.content)
    choices = [
        {"index": row * body["n"] + sample, "text": f"{prompt}/{sample}"}
        for row, prompt in enumerate(body["prompt"])
        for sample in range(body["n"])
    ]
    return httpx.Response(200, json={"choices": choices[::-1]})


def test_texts_come_back_in_the_order_of_the_prompts() -> None:
    assert complete(client(echo), ["a", "b"], n=2) == [["a/0", "a/1"], ["b/0", "b/1"]]


def test_the_request_says_what_was_asked_for() -> None:
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return echo(request)

    complete(client(handler), ["a"], stop=("?", "\n"))

    (request,) = requests
    assert str(request.url) == URL + "/completions"
    assert request.headers["authorization"] == "Bearer km_secret"
    expected = {
        "model": "base",
        "prompt": ["a"],
        "n": 1,
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 11,
        "stop": ["?", "\n"],
    }
    sent = json.loads(request.content)
    assert {name: sent[name] for name in expected} == expected


def test_without_a_key_none_is_sent() -> None:
    seen: list[bool] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append("authorization" in request.headers)
        return echo(request)

    complete(client(handler, key=""), ["a"])

    assert seen == [False]


def test_many_prompts_are_asked_in_batches_with_seeds_of_their_own() -> None:
    bodies: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return echo(request)

    told: list[int] = []
    prompts = [f"p{number}" for number in range(75)]
    texts = complete(client(handler), prompts, on_progress=told.append)

    assert texts == [[f"{prompt}/0"] for prompt in prompts]
    assert [prompt for body in bodies for prompt in body["prompt"]] == prompts
    assert len(bodies) > 1
    assert len({body["seed"] for body in bodies}) == len(bodies)
    assert told[-1] == 75
    assert told == sorted(set(told))
    assert len(told) == len(bodies)


def test_no_prompts_ask_nothing() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    assert complete(client(handler), []) == []


@pytest.mark.parametrize("status", [503, 500, 429, 408])
def test_what_may_pass_is_tried_again(status: int) -> None:
    answers = [status, status]

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(answers.pop()) if answers else echo(request)

    assert complete(client(handler), ["a"]) == [["a/0"]]
    assert answers == []


def test_a_failure_that_does_not_pass_is_an_error() -> None:
    tries: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        tries.append(1)
        return httpx.Response(503, text="warming up")

    with pytest.raises(GeneratorError, match="503: warming up"):
        complete(client(handler), ["a"])

    assert 2 <= len(tries) <= 10


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_not_tried_again(status: int) -> None:
    tries: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        tries.append(1)
        return httpx.Response(status, text="no such model")

    with pytest.raises(GeneratorError, match=f"{status}: no such model") as raised:
        complete(client(handler), ["a"])

    assert len(tries) == 1
    assert isinstance(raised.value, KMError)


def test_an_endpoint_that_cannot_be_reached_is_an_error_with_a_remedy() -> None:
    tries: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        tries.append(1)
        raise httpx.ConnectError("refused")

    with pytest.raises(GeneratorError, match="KM_GENERATOR_URL"):
        complete(client(handler), ["a"])

    assert len(tries) > 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_texts_is_an_error(count: int) -> None:
    choices = [{"index": index, "text": "x"} for index in range(count)]

    with pytest.raises(GeneratorError, match=f"returned {count} texts where 2"):
        complete(client(lambda _: httpx.Response(200, json={"choices": choices})), ["a", "b"])


@pytest.mark.parametrize("content", ["<html>", "[]", '{"data": []}', '{"choices": [{"text": "x"}]}'])
def test_an_answer_of_another_kind_is_an_error_with_a_remedy(content: str) -> None:
    with pytest.raises(GeneratorError, match="OpenAI-compatible"):
        complete(client(lambda _: httpx.Response(200, text=content)), ["a"])


def test_the_key_is_in_no_message() -> None:
    with pytest.raises(GeneratorError) as raised:
        complete(client(lambda _: httpx.Response(401, text="wrong key")), ["a"])

    assert "km_secret" not in str(raised.value)
