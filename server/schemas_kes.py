"""What goes over HTTP about KEs. Descriptions and examples feed OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from server.schemas import KE_ID, Input, Output


class KEIn(Input):
    """A KE to register."""

    model_config = ConfigDict(
        title="KE to register",
        json_schema_extra={"examples": [{"directory": "/srv/kes/answers", "default": True}]},
    )

    directory: str = Field(
        min_length=1,
        max_length=4096,
        description="the directory on the server that holds it, as `km train-ke` writes one; it is copied",
    )
    default: bool = Field(False, description="whether it becomes the default for its base model")


class KEOut(Output):
    """A registered Knowledge Extractor."""

    id: str = Field(examples=[KE_ID])
    name: str = Field(examples=["answers"])
    version: int = Field(description="versions of a name count from 1; its newest answers to the name")
    is_default: bool = Field(description="whether it is the default for its base model")
    fits: bool = Field(description="whether it is for the base model that is served")
    base_model: str = Field(examples=["SmolLM2-135M-Instruct"])
    base_fingerprint: str = Field(description="fingerprint of the base model that it belongs to")
    rank: int = Field(examples=[16])
    prompt_format: str = Field(description="prompt format that it was trained for", examples=["chat-v1"])
    trained: str = Field(description="`km+ke` with KMs, `ke` without", examples=["km+ke"])
    digest: str = Field(description="digest of its content")
    created_at: datetime
    metrics: dict[str, Any] = Field(description="what was measured when it was trained")


class KEList(BaseModel):
    """The KEs, by name, newest version first."""

    kes: list[KEOut]


class KERegistered(BaseModel):
    """A registration's outcome."""

    ke: KEOut
    created: bool = Field(description="false when a KE of this content was registered already")
    warning: str | None = Field(None, description="what to beware of: it is for another prompt format")


class KEDeleted(BaseModel):
    """What was removed with a KE."""

    ke_id: str = Field(examples=[KE_ID])
    purged: dict[str, int] = Field(
        examples=[{"adapter_bytes": 9961472, "composites": 3, "composite_bytes": 119537664}]
    )
