"""What must hold once everything is up again, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from km_registry.registry import Registry
from server.doctor import examined
from tests.faults.stack import Stack
from tests.faults.world import CANARY, World

_DIRECTORIES = ("documents", "kms", "work", "passages", "kes", "composites")


@dataclass
class Tally:
    """How many processes were killed, and how often something was not as promised."""

    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    double_published: int = 0
    orphans: int = 0
    canary_hits: int = 0
    findings: int = 0
    problems: list[str] = field(default_factory=list)

    def check(self, world: World) -> None:
        """Compare the server, its records and its files with what users were told."""
        self._documents(world)
        self._files(world.stack)
        self._forgotten(world)

    def _documents(self, world: World) -> None:
        listed = {one["id"] for one in world.stack.client.get("/documents").json()["documents"]}
        self._note("lost", sorted(set(world.kept) - listed), "are lost")
        self._note("lost", sorted(listed - set(world.kept)), "are there and nobody uploaded them, or deleted")
        with Registry.open(world.stack.settings) as registry:
            for document_id in sorted(listed & set(world.kept)):
                if registry.read_text(document_id) != world.kept[document_id]:
                    self._note("lost", [document_id], "has another text")
                kinds = Counter(event.kind for event in registry.events_after(document_id))
                if kinds["published"] != 1 or len(registry.all_kms_of(document_id)) != 1:
                    self._note("double_published", [document_id], f"was published {kinds['published']} times")

    def _files(self, stack: Stack) -> None:
        for finding in examined(stack.settings):
            kind = "orphans" if "belongs to nothing" in finding.problem else "findings"
            self._note(kind, [finding.subject], finding.problem)
        unfinished = [
            str(path.relative_to(stack.data_dir))
            for directory in _DIRECTORIES
            for path in (stack.data_dir / directory).rglob(".*")
        ]
        self._note("orphans", unfinished, "is unfinished")

    def _forgotten(self, world: World) -> None:
        for document_id in world.deleted:
            if world.stack.client.get(f"/documents/{document_id}").status_code != 404:
                self._note("canary_hits", [document_id], "was deleted and is there")
        kept = {world.canaries[document_id].encode() for document_id in world.kept}
        for path, words in canaries_in(world.stack.data_dir).items():
            self._note("canary_hits", sorted(str(word) for word in words - kept), f"is in {path}")

    def _note(self, kind: str, subjects: list[str], problem: str) -> None:
        setattr(self, kind, getattr(self, kind) + len(subjects))
        self.problems += [f"{kind}: {subject} {problem}" for subject in subjects]


def canaries_in(directory: Path) -> dict[str, set[bytes]]:
    """The canaries in each file below the directory, base models left aside."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if (
            path.is_file()
            and "models" not in path.parts
            and (words := set(CANARY.findall(path.read_bytes())))
        ):
            found[str(path.relative_to(directory))] = words
    return found
