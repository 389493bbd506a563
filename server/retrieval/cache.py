"""Indexes in memory, within a bound."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from server.retrieval.index import PassageIndex


@dataclass(frozen=True, slots=True)
class Key:
    """Which index: a document's, of the text with this SHA-256. Another version has another text."""

    document_id: str
    text_sha256: str


class IndexCache:
    """The indexes used last, together at most `capacity` bytes. The newest one is kept whatever its size."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._indexes: OrderedDict[Key, PassageIndex] = OrderedDict()

    def get(self, key: Key) -> PassageIndex | None:
        """The index, which is thereby the one used last."""
        index = self._indexes.get(key)
        if index is not None:
            self._indexes.move_to_end(key)
        return index

    def put(self, key: Key, index: PassageIndex) -> None:
        """Keep the index; those not used for longest make room."""
        self._indexes[key] = index
        self._indexes.move_to_end(key)
        while len(self._indexes) > 1 and self.nbytes > self._capacity:
            self._indexes.popitem(last=False)

    def drop(self, document_id: str) -> int:
        """Forget every index of the document; how many there were."""
        keys = [key for key in self._indexes if key.document_id == document_id]
        for key in keys:
            del self._indexes[key]
        return len(keys)

    @property
    def documents(self) -> frozenset[str]:
        """Whose indexes are kept."""
        return frozenset(key.document_id for key in self._indexes)

    @property
    def nbytes(self) -> int:
        """Memory that all take together."""
        return sum(index.nbytes for index in self._indexes.values())

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._indexes)
