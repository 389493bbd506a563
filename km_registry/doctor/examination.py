"""The whole examination, in the order in which problems follow from each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from km_registry.doctor import artifacts, orphans, records, shared_store
from km_registry.doctor.findings import Finding
from km_registry.store.store import Store

Check = Callable[[Store], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    records.database,
    records.versions,
    records.jobs,
    artifacts.texts,
    artifacts.kms,
    artifacts.kes,
    orphans.orphans,
    shared_store.copies,
    shared_store.objects,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finding, and whether it was mended."""

    finding: Finding
    repaired: bool


def examine(store: Store, checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """Everything that is not as it should be. Changes nothing."""
    return [finding for check in checks for finding in check(store)]


def repair(findings: Iterable[Finding]) -> Iterator[Outcome]:
    """Mend what can be mended. Nothing else may use the registry meanwhile."""
    for finding in findings:
        if finding.repair is not None:
            finding.repair()
        yield Outcome(finding, finding.repair is not None)
