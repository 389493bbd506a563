"""The rows of the table: which KM answers, in which mode, how it is trained. A registry, open to files."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.evaluation.documents import EvaluationError
from server.modes import Mode

#: The row whose KMs stand for the method where a row names none.
MAIN = "sdcd"
_PASSAGES = re.compile(r"(?:(?P<km>[\w-]+)\+)?rag-(?P<k>[1-9]\d*)")
_WITH_KE = re.compile(r"(?P<row>.+)\+ke(?::(?P<ke>[\w.-]+))?")
_NAME = re.compile(r"[\w+.:-]+")
#: The name by which a server knows the KE it takes for the best.
_DEFAULT_KE = "default"


class RowsError(EvaluationError):
    """A row is not known, or is not defined as rows are."""


class Row(BaseModel):
    """One row. A `recipe` makes it a training row: every document gets a KM of that recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    mode: Mode = Field(Mode.KM, description="of POST /answer")
    about: str = Field("", description="one line for the report")
    recipe: dict[str, Any] | None = None
    km: str | None = Field(None, description="the training row whose KMs answer; the row itself if it trains")
    k: int | None = Field(None, ge=1, description="passages in the prompt")
    wrong: bool = Field(False, description="ask the KM of another document")
    ke: str | None = Field(None, description="the KE to answer with")

    @model_validator(mode="after")
    def _whole(self) -> Row:
        if (self.mode.uses_km or self.mode is Mode.AUTO) and self.recipe is None and self.km is None:
            raise ValueError("a row that answers with KMs needs a recipe, or `km`: the row that trains them")
        if self.recipe is not None and (self.mode is not Mode.KM or self.km is not None):
            raise ValueError("a recipe belongs to a row of mode km without `km`")
        if self.mode.uses_passages != (self.k is not None):
            raise ValueError("k belongs to the modes rag and km+rag, which need it")
        return self

    @property
    def source(self) -> str | None:
        """The training row whose KMs answer; None where no KM does."""
        return self.name if self.recipe is not None else self.km


def _trained(about: str, **recipe: Any) -> dict[str, Any]:
    return {"about": about, "recipe": recipe}


_SDCD = "distilled on synthetic text: {}"
#: The rows of the paper's table. Each may be asked with a KE: `ROW+ke`, `ROW+ke:NAME`.
BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "base": {"mode": "base", "about": "the base model and the question, nothing else"},
    "icl": {"mode": "icl", "about": "the whole document in the prompt"},
    "lm": _trained("KM by next-token loss on the document", objective="lm"),
    "pit": _trained("KM by next-token loss on synthetic questions, then the document", objective="pit"),
    "ddcd": _trained("KM distilled on halves of the document's own windows", objective="ddcd"),
    "sdcd-summary": _trained(_SDCD.format("summaries"), kinds={"summary": 1.0}),
    "sdcd-qa": _trained(_SDCD.format("questions and answers"), kinds={"qa": 1.0}),
    "sdcd-entigraph": _trained(_SDCD.format("entities and relations"), kinds={"entigraph": 1.0}),
    "sdcd-repeat": _trained(_SDCD.format("the chunks themselves"), kinds={"repeat": 1.0}),
    "sdcd-recall": _trained(_SDCD.format("sentences of the chunks"), kinds={"recall": 1.0}),
    MAIN: _trained(_SDCD.format("the server's default mixture")),
    "auto": {"mode": "auto", "km": MAIN, "about": "what the server takes for best, with KMs of the mixture"},
    "wrong": {"km": MAIN, "wrong": True, "about": "control: the KM of another document, the same question"},
}
#: Differences that are reported where both rows are there: the first minus the second.
PAIRS: tuple[tuple[str, str], ...] = (
    (MAIN, "base"),
    (MAIN, "lm"),
    (MAIN, "pit"),
    (MAIN, "ddcd"),
    (MAIN, "sdcd-summary"),
    (MAIN, "sdcd-qa"),
    (MAIN, "sdcd-entigraph"),
    (MAIN, "sdcd-repeat"),
    (MAIN, "sdcd-recall"),
    ("wrong", "base"),
    (MAIN, "wrong"),
    (MAIN, "icl"),
    ("icl", "base"),
    (f"{MAIN}+ke", MAIN),
    (f"{MAIN}+ke", "lm+ke"),
    (f"{MAIN}+ke", "base+ke"),
    (f"{MAIN}+ke", "base+ke:alone"),
    (f"{MAIN}+ke", "wrong+ke"),
    (f"{MAIN}+ke", "icl"),
    ("auto", MAIN),
    ("auto", "icl"),
    *((f"{MAIN}+rag-{k}", other) for k in (1, 2, 4, 8) for other in (f"rag-{k}", MAIN)),
    *(
        (f"{MAIN}+rag-{k}+ke", other)
        for k in (1, 2, 4, 8)
        for other in (f"rag-{k}+ke", f"rag-{k}+ke:alone", f"{MAIN}+rag-{k}", f"{MAIN}+ke")
    ),
    *((f"rag-{k}+ke:alone", f"rag-{k}") for k in (1, 2, 4, 8)),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows that are measured, in the table's order, and the differences that are reported."""

    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...] = field(default=())

    @property
    def training(self) -> tuple[Row, ...]:
        """The rows that train KMs."""
        return tuple(row for row in self.rows if row.recipe is not None)

    def row(self, name: str) -> Row:
        """The row of that name. KeyError when it is not in the plan."""
        return {row.name: row for row in self.rows}[name]


def plan(names: Sequence[str], recipe: Mapping[str, Any], definitions: Path | None = None) -> Plan:
    """The plan for the rows of these names; `recipe` is merged into every training row's, and a TOML or JSON
    file may define rows anew or others (`[rows.NAME]`) and the `pairs`.

    Raises:
        RowsError: a name is unknown or given twice, a row needs another's KMs that is not among them, or the
            file is not what it should be.
    """
    custom, pairs = _read(definitions) if definitions else ({}, None)
    known = {**BUILT_IN, **custom}
    _ensure_names(names)
    rows = tuple(_row(name, known, recipe) for name in names)
    for row in rows:
        if row.source is not None and row.source not in {one.name for one in rows if one.recipe is not None}:
            raise RowsError(
                f"The row {row.name} is answered by the KMs of {row.source}, which is no training row of "
                f"this evaluation. Add {row.source} to --rows."
            )
    chosen = PAIRS if pairs is None else pairs
    return Plan(rows, tuple(pair for pair in chosen if {*pair} <= {*names}))


def _ensure_names(names: Sequence[str]) -> None:
    if not names:
        raise RowsError("No rows are named. Write them like --rows base,icl,sdcd.")
    for name in names:
        if not _NAME.fullmatch(name) or names.count(name) > 1:
            problem = "is named twice" if names.count(name) > 1 else "is no name of a row"
            raise RowsError(f"The row {name!r} {problem}. Write rows like --rows base,icl,sdcd.")


def _row(name: str, known: Mapping[str, Mapping[str, Any]], recipe: Mapping[str, Any]) -> Row:
    fields = _fields(name, known)
    if fields is None:
        raise RowsError(
            f"There is no row {name!r}. There are {', '.join(known)}, rag-K for K passages, and ROW+rag-K "
            "for the KMs of a training row with them; +ke behind any of these, or +ke:NAME, asks with a KE. "
            "Others can be defined in a file, --definitions."
        )
    if fields.get("recipe") is not None:
        fields = {**fields, "recipe": {**fields["recipe"], **recipe}}
    try:
        return Row.model_validate({**fields, "name": name})
    except ValidationError as error:
        raise RowsError(f"The row {name} is not defined as rows are: {_first(error)}.") from error


def _fields(name: str, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return (
        known.get(name)
        or known.get(name.removeprefix("km:"))
        or _with_passages(name)
        or _with_ke(name, known)
    )


def _with_ke(name: str, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    found = _WITH_KE.fullmatch(name)
    fields = _fields(found["row"], known) if found else None
    if found is None or fields is None or fields.get("ke"):
        return None
    ke = found["ke"] or _DEFAULT_KE
    which = "the default KE" if ke == _DEFAULT_KE else f"the KE {ke}"
    # A training row's KMs, which that row trains.
    own = {"km": found["row"]} if fields.get("recipe") is not None else {}
    kept = {key: value for key, value in fields.items() if key != "recipe"}
    return kept | own | {"ke": ke, "about": f"{fields.get('about', found['row'])}; with {which}"}


def _with_passages(name: str) -> Mapping[str, Any] | None:
    found = _PASSAGES.fullmatch(name)
    if found is None:
        return None
    k = int(found["k"])
    if found["km"] is None:
        return {"mode": "rag", "k": k, "about": f"{k} passages in the prompt"}
    km = MAIN if found["km"] == "km" else found["km"]
    return {"mode": "km+rag", "k": k, "km": km, "about": f"KM of {km}, and {k} passages in the prompt"}


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], tuple[tuple[str, str], ...] | None]:
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise RowsError(f"{path} cannot be read as TOML or JSON ({error}).") from error
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise RowsError(f"{path}: {_first(error)}. It holds `rows` by name, and `pairs` of names.") from error
    # What a row leaves open stays as it is built in.
    return {name: {**BUILT_IN.get(name, {}), **fields} for name, fields in file.rows.items()}, file.pairs


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rows: dict[str, dict[str, Any]] = {}
    pairs: tuple[tuple[str, str], ...] | None = None


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
