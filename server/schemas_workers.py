"""What is told of workers."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field


class WorkerOut(BaseModel):
    """A worker that was heard of lately."""

    name: str = Field(examples=["gpu-3.4711.9f2c01aa"])
    host: str = Field(examples=["gpu-3"])
    queues: list[str] = Field(description="what it serves", examples=[["default", "large-gpu"]])
    jobs: list[str] = Field(description="what it trains; nothing while it is idle", examples=[["job_4m8x1a"]])
    since: datetime = Field(description="when it began with that; of an idle one, when it was started")
    seen_at: datetime = Field(description="its last heartbeat")


class WorkerList(BaseModel):
    """All workers, by name."""

    workers: list[WorkerOut]
