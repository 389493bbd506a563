"""The generator's client, against a transport that plays the endpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import stamina

from km_registry.config import GeneratorEndpoint
from km_registry.errors import KMError
from trainer_worker.generator import (
    TOGETHER,
    Ask,
    Draft,
    Generator,
    GeneratorClosedError,
    GeneratorError,
    Seats,
)

URL = "http://generator.test/v1"
SYSTEM = {"role": "system", "content": "Be brief."}

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler, tokenizer: Any = None, **fields: Any) -> Generator:
    endpoint = GeneratorEndpoint(**({"url": URL, "model": "base", "key": "km_secret", "timeout": 5} | fields))
    return Generator(endpoint, tokenizer, transport=httpx.MockTransport(handler))


def ask(content: str, *, seed: int = 0, begin: str = "") -> Ask:
    return Ask((SYSTEM, {"role": "user", "content": content}), begin, seed)


def complete(generator: Generator, asks: list[Ask], **fields: Any) -> list[str]:
    return [draft.text for draft in drafts(generator, asks, **fields)]


def drafts(generator: Generator, asks: list[Ask], **fields: Any) -> list[Draft]:
    with generator:
        return generator.complete(asks, **({"max_tokens": 7, "temperature": 0.5} | fields))


def echo(request: httpx.Request) -> httpx.Response:
    """A text for each prompt that tells its prompt and seed, in an order of the endpoint's own."""
    body = json.loads(request.content)
    choices = [
        {"index": row, "text": f"{prompt}/{body['seed']}"} for row, prompt in enumerate(body["prompt"])
    ]
    return httpx.Response(200, json={"choices": choices[::-1]})


def chat_echo(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    content = f"{body['messages'][-1]['content']}/{body['seed']}"
    return httpx.Response(200, json={"choices": [{"index": 0, "message": {"content": content}}]})


def noting(bodies: list[dict[str, Any]], handler: Handler = echo) -> Handler:
    def noted(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content) | {"path": request.url.path})
        return handler(request)

    return noted


def failing(answer: Callable[[], httpx.Response]) -> tuple[Handler, list[int]]:
    tries: list[int] = []

    def handler(_request: httpx.Request) -> httpx.Response:
        tries.append(1)
        return answer()

    return handler, tries


# --- what is asked ----------------------------------------------------------------------------------------


def test_texts_come_back_in_the_order_of_the_asks() -> None:
    texts = complete(client(echo), [ask("a", seed=3), ask("b", seed=4), ask("c", seed=3)])

    assert [(text[-1], "abc"[index] in text) for index, text in enumerate(texts)] == [
        ("3", True),
        ("4", True),
        ("3", True),
    ]


def test_the_servers_own_model_is_asked_in_its_chat_format(tokenizer: Any) -> None:
    bodies: list[dict[str, Any]] = []

    complete(
        client(noting(bodies), tokenizer),
        [ask("Who?", seed=11, begin="It is")],
        stop=("?", "\n"),
        max_tokens=9,
    )

    assert bodies == [
        {
            "path": "/v1/completions",
            "model": "base",
            "prompt": ["<|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>It is"],
            "max_tokens": 9,
            "temperature": 0.5,
            "seed": 11,
            "stop": ["?", "\n"],
            "add_special_tokens": False,
        }
    ]


def test_another_model_is_asked_in_plain_paragraphs() -> None:
    bodies: list[dict[str, Any]] = []

    complete(client(noting(bodies)), [ask("Who?", begin="It is")])

    assert bodies[0]["prompt"] == ["Be brief.\n\nWho?\n\nAnswer:It is"]
    # Endpoints of others refuse fields they do not know.
    assert "add_special_tokens" not in bodies[0]


def test_chat_gets_the_conversation_itself() -> None:
    bodies: list[dict[str, Any]] = []

    texts = complete(
        client(noting(bodies, chat_echo), api="chat"), [ask("a", seed=1), ask("b", seed=1)], stop=("\n",)
    )

    assert texts == ["a/1", "b/1"]
    assert sorted(body["messages"][1]["content"] for body in bodies) == ["a", "b"]
    assert bodies[0] == {
        "path": "/v1/chat/completions",
        "model": "base",
        "messages": [SYSTEM, {"role": "user", "content": bodies[0]["messages"][1]["content"]}],
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 1,
    }


@pytest.mark.parametrize("content", [" Question: Who? ", "Who?"])
def test_a_chat_answer_may_begin_as_it_was_to_or_go_on_from_there(content: str) -> None:
    choice = {"index": 0, "message": {"content": content}}
    generator = client(lambda _: httpx.Response(200, json={"choices": [choice]}), api="chat")

    assert complete(generator, [ask("a", begin="Question:")])[0].strip() == "Who?"


def test_a_chat_answer_without_content_is_empty() -> None:
    choice = {"index": 0, "message": {"content": None}, "finish_reason": "content_filter"}

    assert complete(
        client(lambda _: httpx.Response(200, json={"choices": [choice]}), api="chat"), [ask("a")]
    ) == [""]


@pytest.mark.parametrize(("reason", "cut"), [("length", True), ("stop", False), (None, False)])
def test_a_text_that_the_limit_ended_is_marked(reason: str | None, cut: bool) -> None:
    choice = {"index": 0, "text": "Half a", "finish_reason": reason}
    generator = client(lambda _: httpx.Response(200, json={"choices": [choice]}))

    assert drafts(generator, [ask("a")]) == [Draft("Half a", cut)]


@pytest.mark.parametrize("key", ["", "km_secret"])
def test_the_key_is_sent_when_there_is_one(key: str) -> None:
    seen: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return echo(request)

    complete(client(handler, key=key), [ask("a")])

    assert seen == ["Bearer km_secret" if key else None]


def test_asks_of_one_seed_share_requests_and_each_keeps_its_seed() -> None:
    bodies: list[dict[str, Any]] = []
    asks = [ask(f"p{number}", seed=number % 2) for number in range(2 * TOGETHER + 10)]

    texts = complete(client(noting(bodies)), asks)

    assert [text.partition("/")[2] for text in texts] == [str(number % 2) for number in range(len(asks))]
    assert [f"p{number}\n" in text for number, text in enumerate(texts)] == [True] * len(asks)
    assert sorted((body["seed"], len(body["prompt"])) for body in bodies) == [
        (0, 5),
        (0, TOGETHER),
        (1, 5),
        (1, TOGETHER),
    ]


def test_no_more_texts_are_on_the_way_than_there_are_seats() -> None:
    seats, entered = Seats(10), threading.Event()

    def another() -> None:
        with seats.taken(6):
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with seats.taken(4), seats.taken(4):
            waiting = pool.submit(another)
            # What must not happen can only be waited for.
            assert not entered.wait(0.2)
        waiting.result(timeout=10)
    assert entered.is_set()


def test_generators_may_share_their_seats() -> None:
    seats = Seats(2)
    texts = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert seats.free == 0
        return echo(request)

    for _ in range(2):
        endpoint = GeneratorEndpoint(url=URL, model="base")
        generator = Generator(endpoint, seats=seats, transport=httpx.MockTransport(handler))
        texts += complete(generator, [ask("a"), ask("b")])

    assert len(texts) == 4
    assert seats.free == 2


def test_nothing_is_asked_for_nothing() -> None:
    handler, tries = failing(lambda: httpx.Response(500))

    assert complete(client(handler), []) == []
    assert tries == []


# --- what fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [503, 500, 429, 408])
def test_what_may_pass_is_tried_again(status: int) -> None:
    answers = [status, status]

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(answers.pop()) if answers else echo(request)

    assert complete(client(handler), [ask("a")])[0].endswith("/0")
    assert answers == []


@pytest.mark.parametrize(
    "answer",
    [
        lambda: httpx.Response(503, text="warming up"),
        lambda: httpx.Response(200, text="<html>"),
        lambda: httpx.Response(200, json={"choices": []}),
    ],
    ids=["failing", "nonsense", "nothing"],
)
def test_a_failure_that_does_not_pass_is_an_error(answer: Callable[[], httpx.Response]) -> None:
    handler, tries = failing(answer)

    with pytest.raises(GeneratorError):
        complete(client(handler), [ask("a")])

    assert len(tries) == 9


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_not_tried_again(status: int) -> None:
    handler, tries = failing(lambda: httpx.Response(status, text="no such model"))

    with pytest.raises(GeneratorError, match=f"{status}: no such model") as raised:
        complete(client(handler), [ask("a")])

    assert len(tries) == 1
    assert isinstance(raised.value, KMError)
    assert raised.value.brief == f"the generator answered {status}"


@pytest.mark.parametrize(
    ("error", "brief"),
    [
        (httpx.ConnectError("refused"), "the generator could not be reached"),
        (httpx.ReadTimeout("slow"), "the generator took too long"),
    ],
)
def test_an_endpoint_that_is_not_there_is_an_error_with_a_remedy(error: Exception, brief: str) -> None:
    def answer() -> httpx.Response:
        raise error

    handler, tries = failing(answer)

    with pytest.raises(GeneratorError, match="KM_GENERATOR_URL") as raised:
        complete(client(handler), [ask("a")])

    assert len(tries) == 9
    assert raised.value.brief == brief


def test_one_that_hangs_is_not_waited_for_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    retry_context = stamina.retry_context
    monkeypatch.setattr(stamina, "retry_context", lambda **how: asked.append(how) or retry_context(**how))

    complete(client(echo, timeout=7), [ask("a")])

    # The second attempt ends after it.
    assert [how["timeout"] for how in asked] == [14]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_texts_is_an_error(count: int) -> None:
    choices = [{"index": index, "text": "x"} for index in range(count)]

    with pytest.raises(GeneratorError, match=f"returned {count} texts where 2"):
        complete(client(lambda _: httpx.Response(200, json={"choices": choices})), [ask("a"), ask("b")])


@pytest.mark.parametrize(
    "content", ["<html>", "[]", '{"data": []}', '{"choices": [{"text": "x"}]}', '{"choices": [{"index": 0}]}']
)
def test_an_answer_of_another_kind_is_an_error_with_a_remedy(content: str) -> None:
    with pytest.raises(GeneratorError, match="OpenAI-compatible"):
        complete(client(lambda _: httpx.Response(200, text=content)), [ask("a")])


def test_the_key_is_in_no_message() -> None:
    with pytest.raises(GeneratorError, match="wrong key") as raised:
        complete(client(lambda _: httpx.Response(401, text="wrong key km_secret")), [ask("a")])

    assert "km_secret" not in str(raised.value)
    assert "generator.test" not in raised.value.brief


def test_leaving_does_not_wait_for_what_is_on_the_way() -> None:
    over = threading.Event()

    def handler(request: httpx.Request) -> httpx.Response:
        if "slow" in json.loads(request.content)["prompt"][0]:
            assert over.wait(10)
            return echo(request)
        return httpx.Response(401)

    with pytest.raises(GeneratorError):
        complete(client(handler), [ask("refused", seed=1), ask("slow", seed=2)])
    over.set()


def test_closing_ends_every_wait() -> None:
    asked, over = threading.Event(), threading.Event()

    def handler(_request: httpx.Request) -> httpx.Response:
        asked.set()
        assert over.wait(10)
        return httpx.Response(401)

    generator = client(handler)
    closer = threading.Thread(target=lambda: asked.wait(10) and generator.close())
    closer.start()

    with pytest.raises(GeneratorClosedError):
        generator.complete([ask("a")], max_tokens=1, temperature=0)
    with pytest.raises(GeneratorClosedError):
        generator.complete([ask("a")], max_tokens=1, temperature=0)

    over.set()
    closer.join()
