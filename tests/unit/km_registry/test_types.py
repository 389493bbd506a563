"""Records and states."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from km_registry.types import Job, JobState, Stage

JOB = Job("job_1", "doc_1", JobState.RUNNING, 1, Stage.TRAINING, 3, 10, datetime.now(UTC))


@pytest.mark.parametrize(
    ("state", "finished"),
    [
        (JobState.QUEUED, False),
        (JobState.RUNNING, False),
        (JobState.SUCCEEDED, True),
        (JobState.FAILED, True),
        (JobState.CANCELLED, True),
    ],
)
def test_a_finished_job_is_left_alone(state: JobState, finished: bool) -> None:
    assert state.finished is finished


def test_progress_is_one_phrase() -> None:
    assert JOB.progress == "training 3/10"
    assert replace(JOB, stage=Stage.EXPORT, total_steps=0).progress == "export"
    assert replace(JOB, state=JobState.FAILED).progress == "failed"
