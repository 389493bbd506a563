"""The Python client: `KM`, and `AsyncKM` for asyncio.

from server.client import KM

with KM("http://127.0.0.1:8321", "km_…") as km:
    document = km.add("Harbour rules", "The harbour of Ostrell opens at six.")["document"]
    km.wait(document["id"])
    print(km.ask(document["id"], "When does the harbour open?")["answer"])
"""

from server.client.async_client import AsyncAnswerStream, AsyncKM
from server.client.errors import ClientError, TrainingError
from server.client.events import EventReader, ServerEvent, read_events
from server.client.sync import KM, AnswerStream

__all__ = [
    "KM",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncKM",
    "ClientError",
    "EventReader",
    "ServerEvent",
    "TrainingError",
    "read_events",
]
