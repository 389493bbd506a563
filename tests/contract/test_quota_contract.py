"""What one owner may keep and have trained, in every registry, on whichever database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from km_registry.config import RegistrySettings
from km_registry.errors import QuotaError
from km_registry.registry import Registry
from km_registry.types import Document, Principal, Role
from tests.contract.support import claimed, files_below, publish, together


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path, database_url: str | None) -> RegistrySettings:
    return RegistrySettings(data_dir=tmp_path / "data", database_url=database_url, **request.param)


def limits(**fields: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("settings", [fields], indirect=True)


@limits(owner_documents=2)
def test_documents(
    registry: Registry, owner: Principal, stranger: Principal, settings: RegistrySettings
) -> None:
    first, _, _ = registry.add_document(owner, "t", "text 1")
    registry.add_document(owner, "t", "text 2")
    with pytest.raises(QuotaError, match=r"3 documents.*may have 2.*delete") as raised:
        registry.add_document(owner, "t", "text 3")
    assert raised.value.retry_after_s > 0
    assert len(files_below(settings.data_dir / "documents")) == 2
    registry.add_document(owner, "t", "text 2")
    registry.add_document(stranger, "t", "text 3")
    registry.update_document(owner, first.id, "text 4")
    registry.tombstone(owner, first.id)
    registry.add_document(owner, "t", "text 3")


@limits(owner_bytes=10)
def test_bytes(registry: Registry, owner: Principal, stranger: Principal) -> None:
    document, _, _ = registry.add_document(owner, "t", "12345678")
    with pytest.raises(QuotaError, match="11 bytes of documents"):
        registry.add_document(owner, "t", "123")
    registry.add_document(owner, "t", "12")
    with pytest.raises(QuotaError, match="11 bytes of documents"):
        registry.update_document(owner, document.id, "123456789")
    assert registry.read_text(document.id) == "12345678"
    # They are whose document it is, whoever makes it larger.
    registry.people.share(owner, document.id, user="Bob", role=Role.OWNER)
    with pytest.raises(QuotaError, match="11 bytes of documents"):
        registry.update_document(stranger, document.id, "123456789")
    registry.update_document(owner, document.id, "1234567")


@limits(owner_trainings=1)
def test_trainings(registry: Registry, owner: Principal, stranger: Principal) -> None:
    document, job, _ = registry.add_document(owner, "t", "text 1")
    with pytest.raises(QuotaError, match=r"2 unfinished trainings.*wait"):
        registry.add_document(owner, "t", "text 2")
    registry.add_document(stranger, "t", "text 2")
    # A new version's takes the place of the one before.
    document, job, _ = registry.update_document(owner, document.id, "text 3")
    publish(registry, document, job)
    second, job, _ = registry.add_document(owner, "t", "text 2")
    with pytest.raises(QuotaError, match="unfinished trainings"):
        registry.retrain(owner, document.id, {})
    registry.fail(job.id, claimed(registry, job.id).attempt, "no reason")
    registry.retrain(owner, document.id, {})
    assert registry.list_documents(owner) == [second, document]


@limits(owner_documents=3)
def test_uploads_at_once_count_each_other(registry: Registry, owner: Principal) -> None:
    def upload(number: int) -> Document | None:
        try:
            return registry.add_document(owner, "t", f"text {number}")[0]
        except QuotaError:
            return None

    kept = [document for document in together(6, upload) if document]
    assert len(kept) == len(registry.list_documents(owner)) == 3
