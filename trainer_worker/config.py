"""Settings of a worker. Each is an environment variable with prefix KM_."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, SecretStr, StringConstraints, field_validator
from pydantic_settings import NoDecode

from km_registry.config import GeneratorEndpoint, RegistrySettings
from km_registry.errors import KMError
from km_registry.recipe import QUEUE_PATTERN
from km_registry.types import DEFAULT_QUEUE

QueueName = Annotated[str, StringConstraints(pattern=QUEUE_PATTERN)]


class TrainerSettings(RegistrySettings):
    """Where the worker gets its jobs and its synthetic text, and how much it may use."""

    file_section: ClassVar[str | None] = "trainer"

    generator_url: str = Field(
        "http://127.0.0.1:8321/v1", description="OpenAI-compatible endpoint (…/v1) that writes synthetic text"
    )
    generator_key: str = Field("", repr=False, description="API key for generator_url")
    generator_model: str = Field("base", description="model to ask for at generator_url")
    generator_timeout: float = Field(300.0, gt=0, description="seconds to wait for one batch of text")
    queues: Annotated[tuple[QueueName, ...], NoDecode] = Field(
        (DEFAULT_QUEUE,),
        min_length=1,
        description="queues that the worker serves, separated by commas; `default` has the jobs whose recipe "
        "names none",
    )
    threads: int | None = Field(None, ge=1, description="threads for training; without one, every core")
    niceness: int = Field(10, ge=0, le=19, description="how far training steps back behind users' questions")
    train_memory_gb: float | None = Field(
        None, gt=0, description="memory that training may take, in GiB; without one, most of what is free"
    )
    teacher_cache_gb: float = Field(
        1.0, ge=0, description="memory for teacher targets of all documents in training, in GiB"
    )
    teacher_disk_gb: float = Field(
        16.0, ge=0, description="disk for teacher targets; what finds no place is computed again at every use"
    )
    checkpoint_seconds: float = Field(
        30.0, gt=0, description="seconds of training that a crash may cost, at most"
    )
    shutdown_grace: float = Field(3.0, gt=0, description="seconds a running job gets to hand itself back")

    @field_validator("queues", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip()) or (DEFAULT_QUEUE,)
        return value

    def generator(self, name: str | None) -> GeneratorEndpoint:
        """Who writes the synthetic text: the named generator; without a name the one at `generator_url`.

        Raises:
            KMError: there is no generator of that name.
        """
        if name is None:
            return GeneratorEndpoint(
                url=self.generator_url,
                model=self.generator_model,
                key=SecretStr(self.generator_key),
                api="completions",
                timeout=self.generator_timeout,
            )
        if name not in self.generators:
            raise KMError(
                f"There is no generator {name!r} any more; have KM_GENERATORS name it, or train again"
            )
        return self.generators[name]
