"""Where the knowledge in an answer comes from, and what mode `auto` makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Mode(StrEnum):
    """Where the knowledge in an answer comes from."""

    AUTO = "auto"
    KM = "km"
    RAG = "rag"
    KM_RAG = "km+rag"
    ICL = "icl"
    BASE = "base"

    @property
    def uses_km(self) -> bool:
        """Whether the document's KM is plugged in."""
        return self in (Mode.KM, Mode.KM_RAG)

    @property
    def uses_passages(self) -> bool:
        """Whether passages of the document are in the prompt."""
        return self in (Mode.RAG, Mode.KM_RAG)


#: What answers when passages cannot be had: the same knowledge without them.
_WITHOUT_PASSAGES = {Mode.KM_RAG: Mode.KM, Mode.RAG: Mode.ICL}


@dataclass(frozen=True, slots=True)
class Choice:
    """The mode that answers, and why it is that one, in a short sentence."""

    mode: Mode
    why: str

    def without_passages(self) -> Choice:
        """What answers instead, since retrieval is not there."""
        return replace(
            self,
            mode=_WITHOUT_PASSAGES.get(self.mode, self.mode),
            why=f"{self.why}; passages cannot be had now",
        )


class AutoKE(StrEnum):
    """When mode `auto` has the default KE applied, if there is one."""

    NEVER = "never"
    WITH_KM = "with_km"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class AutoPolicy:
    """What `auto` becomes for a document with a KM and for one without, and whether a KE joins in."""

    trained: Mode
    untrained: Mode
    ke: AutoKE = AutoKE.ALWAYS

    def wants_ke(self, mode: Mode) -> bool:
        """Whether the default KE joins in when `auto` has become this mode."""
        return self.ke is AutoKE.ALWAYS or (self.ke is AutoKE.WITH_KM and mode.uses_km)

    def choose(self, *, no_km: str | None) -> Choice:
        """The choice; `no_km` says why there is no KM, None that there is one."""
        if no_km is None:
            return Choice(self.trained, "the document's KM is trained")
        return Choice(self.untrained, no_km)
