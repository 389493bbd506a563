"""Who writes the synthetic text, and which queues a worker serves."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from km_registry.config import GeneratorEndpoint
from km_registry.errors import KMError
from trainer_worker.config import TrainerSettings

BIG = GeneratorEndpoint(url="http://big.test/v1", model="big-9b", api="chat")


def settings() -> TrainerSettings:
    return TrainerSettings(
        generator_url="http://own.test/v1",
        generator_key="km_secret",
        generator_model="base",
        generator_timeout=7,
        generators={"big": BIG},
    )


def test_without_a_name_it_is_the_server() -> None:
    assert settings().generator(None) == GeneratorEndpoint(
        url="http://own.test/v1", model="base", key=SecretStr("km_secret"), api="completions", timeout=7
    )


def test_a_named_one_is_the_operators() -> None:
    assert settings().generator("big") == BIG


def test_an_unknown_name_is_an_error_with_a_remedy() -> None:
    with pytest.raises(KMError, match="KM_GENERATORS"):
        settings().generator("huge")


def test_queues_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings().queues == ("default",)
    for said, served in {"large-gpu, default": ("large-gpu", "default"), "": ("default",)}.items():
        monkeypatch.setenv("KM_QUEUES", said)
        assert settings().queues == served
    monkeypatch.setenv("KM_QUEUES", "Large GPU")
    with pytest.raises(ValidationError, match="queues"):
        settings()
