"""What both clients take from the environment, and what both hold a training to."""

from __future__ import annotations

import os

from server.client.errors import ClientError, TrainingError
from server.client.types import Job

DEFAULT_URL = "http://127.0.0.1:8321"


def url_of(given: str | None) -> str:
    """The server's address: as given, KM_URL, or this machine's default."""
    return given or os.environ.get("KM_URL") or DEFAULT_URL


def api_key_of(given: str | None) -> str:
    """The API key: as given, or KM_API_KEY. ClientError without one."""
    key = given or os.environ.get("KM_API_KEY")
    if not key:
        raise ClientError("Set KM_API_KEY to an API key; `km serve` prints one at its first start.")
    return key


def require_trained(document_id: str, job: Job) -> None:
    """TrainingError unless the job has made a KM."""
    if job["state"] != "succeeded":
        reason = f": {job['error']}" if job["error"] else "; train it again"
        raise TrainingError(f"The training of {document_id} is {job['state']}{reason}.")
