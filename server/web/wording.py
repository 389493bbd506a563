"""How the page says sizes, moments, states and modes."""

from __future__ import annotations

from datetime import UTC, datetime

from km_registry.types import JobState, Stage
from server.modes import Mode

#: What a person calls each mode, and what is in its prompt.
MODES: dict[Mode, tuple[str, str]] = {
    Mode.AUTO: ("Auto", "what measures best for this server's model"),
    Mode.KM: ("KM", "only the question; the document's KM is plugged in"),
    Mode.RAG: ("Retrieval", "the question and the best passages"),
    Mode.KM_RAG: ("KM + retrieval", "the question and the best passages, with the KM plugged in"),
    Mode.ICL: ("Whole document", "the question and all of the document"),
    Mode.BASE: ("Base", "only the question, and nothing of the document"),
}
#: In the order in which they are compared: from no knowledge to all of it in the prompt.
COMPARED = (Mode.BASE, Mode.RAG, Mode.KM, Mode.KM_RAG, Mode.ICL)

#: What a person calls each stage of a training.
STAGES: dict[Stage, str] = {
    Stage.SYNTHESIS: "Writing",
    Stage.TEACHER: "Teacher",
    Stage.TRAINING: "Training",
    Stage.EVALUATION: "Measure",
    Stage.EXPORT: "Publish",
}
#: What a person calls the presets of recipes.
PRESETS = {
    "default": "Default: learns from texts that the model writes about the document",
    "fast": "Fast: learns from the document alone",
    "paper": "Paper: long chunks and many texts, for larger models",
}
_STATES = {
    JobState.QUEUED: "Waiting",
    JobState.RUNNING: "Training",
    JobState.SUCCEEDED: "KM ready",
    JobState.FAILED: "Failed",
    JobState.CANCELLED: "Cancelled",
}
_UNITS = ("B", "kB", "MB", "GB")


def size(count: float) -> str:
    """Bytes for a person: 3172 is 3.2 kB."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    rounded = f"{count:.0f}" if count >= 100 else f"{count:.1f}".removesuffix(".0")
    return f"{rounded} {_UNITS[unit]}"


def percent(share: float | None) -> str:
    """A share of 1; a dash for one that is not known."""
    return "–" if share is None else f"{share * 100:.0f} %"


def number(count: float) -> str:
    """With thin spaces between thousands."""
    return f"{count:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def moment(at: datetime) -> str:
    """A moment in UTC; the page's script says it in the reader's own time."""
    return f"{at.astimezone(UTC):%-d %b %Y, %H:%M} UTC"


def seconds(count: float) -> str:
    """A duration: 95 is 1 min 35 s."""
    if count < 60:
        return f"{count:.0f} s"
    minutes, rest = divmod(round(count), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def ago(count: float) -> str:
    """How long ago something was, in seconds; clocks of two machines may differ a little."""
    return "just now" if count < 1 else f"{seconds(count)} ago"


def milliseconds(count: float) -> str:
    """A duration: 1240 is 1.24 s."""
    return f"{count:.0f} ms" if count < 1000 else f"{count / 1000:.2f} s"


def mode_name(mode: Mode) -> str:
    """What a person calls the mode."""
    return MODES[mode][0]


def state_name(state: JobState, stage: Stage | None = None) -> str:
    """One or two words for how far a training is."""
    if state is JobState.RUNNING and stage is not None:
        return STAGES.get(stage, _STATES[state])
    return _STATES[state]
