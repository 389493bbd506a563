"""Go's templates, as far as the chart uses them: tests have no helm to ask. What is not known here fails."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[()|]|:=|=|[^\s()|"]+')


class RefusedError(Exception):
    """The chart's own `fail` or `required`."""


@dataclass
class _Block:
    """`if` and `range` with what is in them; each branch has a condition, of `else` it is None."""

    kind: str
    branches: list[tuple[list[str] | None, list[Any]]] = field(default_factory=list)


class Templates:
    """What `define` names, and what is rendered with it."""

    def __init__(self) -> None:
        self._defined: dict[str, list[Any]] = {}

    def rendered(self, text: str, values: dict[str, Any]) -> str:
        """The text, filled in for a release called `km`."""
        root = {"Values": values, "Release": {"Name": "km"}}
        return self._run(self._parsed(text), root, {"$": root})

    def define(self, text: str) -> None:
        """Take the text's definitions in."""
        self._parsed(text)

    def _parsed(self, text: str) -> list[Any]:
        top: list[Any] = []
        open_: list[tuple[Any, list[Any]]] = [(None, top)]
        for piece in _pieces(text):
            words = [] if isinstance(piece, str) else piece
            match words[:1]:
                case ["define"]:
                    self._defined[words[1][1:-1]] = body = []
                    open_.append((None, body))
                case ["if" | "range" as kind]:
                    block = _Block(kind, [(words[1:], [])])
                    open_[-1][1].append(block)
                    open_.append((block, block.branches[0][1]))
                case ["else"]:
                    block, _ = open_.pop()
                    block.branches.append((words[2:] or None, []))
                    open_.append((block, block.branches[-1][1]))
                case ["end"]:
                    open_.pop()
                case _:
                    open_[-1][1].append(piece)
        assert len(open_) == 1, "an end is missing"
        return top

    def _run(self, body: list[Any], dot: Any, names: dict[str, Any]) -> str:
        written = []
        for one in body:
            if isinstance(one, str):
                written.append(one)
            elif isinstance(one, _Block):
                written.append(self._block(one, dot, names))
            elif len(one) > 1 and one[1] in (":=", "="):
                names[one[0]] = self._value(one[2:], dot, names)
            else:
                written.append(_text(self._value(one, dot, names)))
        return "".join(written)

    def _block(self, block: _Block, dot: Any, names: dict[str, Any]) -> str:
        if block.kind == "range":
            ((head, body),) = block.branches
            assert head is not None
            name, sign, *rest = head
            assert sign == ":=", "range without a name"
            # Names that the body sets are the same ones outside; Go has `=` for that.
            return "".join(
                self._run(body, dot, _set(names, name, one)) for one in self._value(rest, dot, names) or ()
            )
        for condition, body in block.branches:
            if condition is None or self._value(condition, dot, names):
                return self._run(body, dot, names)
        return ""

    def _value(self, words: list[str], dot: Any, names: dict[str, Any]) -> Any:
        """What a pipeline comes to: each part's value is the last argument of the next."""
        stages = _split(words)
        value = self._call(stages[0], [], dot, names)
        for stage in stages[1:]:
            value = self._call(stage, [value], dot, names)
        return value

    def _call(self, words: list[str], last: list[Any], dot: Any, names: dict[str, Any]) -> Any:
        arguments = [self._term(one, dot, names) for one in _terms(words)]
        first = words[0]
        if first[0] in '."$(' or first.isdigit() or first in ("true", "false"):
            assert len(arguments) == 1, words
            return arguments[0]
        rest = [*arguments[1:], *last]
        if first == "include":
            return self._run(self._defined[rest[0]], rest[1], {"$": rest[1]})
        assert first in _FUNCTIONS, f"no such function here: {first}"
        return _FUNCTIONS[first](*rest)

    def _term(self, words: list[str], dot: Any, names: dict[str, Any]) -> Any:
        (first, *_) = words
        if first == "(":
            return self._value(words[1:-1], dot, names)
        if first.startswith('"'):
            return first[1:-1]
        if first.isdigit():
            return int(first)
        if first in ("true", "false"):
            return first == "true"
        if first[0] not in ".$":
            return None  # a function's name
        name, _, path = first.partition(".")
        value = names[name] if name else dot
        for step in filter(None, path.split(".")):
            value = value.get(step)
        return value


def _pieces(text: str) -> Iterator[str | list[str]]:
    """Texts, and the words of what stands between braces."""
    # A sign beside the braces takes the white space on its side away.
    text = re.sub(r"-\}\}\s*", "}}", re.sub(r"\s*\{\{- ", "{{", text))
    for at, part in enumerate(re.split(r"\{\{(.*?)\}\}", text, flags=re.DOTALL)):
        if at % 2 == 0:
            yield part
        elif not part.strip().startswith("/*"):
            yield _TOKEN.findall(part)


def _split(words: list[str]) -> list[list[str]]:
    """The parts of a pipeline."""
    stages: list[list[str]] = [[]]
    depth = 0
    for word in words:
        depth += (word == "(") - (word == ")")
        if word == "|" and depth == 0:
            stages.append([])
        else:
            stages[-1].append(word)
    return stages


def _terms(words: list[str]) -> list[list[str]]:
    """Single words, and what stands in parentheses."""
    terms: list[list[str]] = []
    depth = 0
    for word in words:
        if depth:
            terms[-1].append(word)
        else:
            terms.append([word])
        depth += (word == "(") - (word == ")")
    return terms


def _set(names: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    names[name] = value
    return names


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fail(message: str) -> None:
    raise RefusedError(message)


def _required(message: str, value: Any) -> Any:
    return value or _fail(message)


def _indented(width: int, text: str) -> str:
    return "\n" + "\n".join(" " * width + line for line in text.split("\n"))


def _put(into: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    into[key] = value
    return into


def _any(*values: Any) -> Any:
    return next((one for one in values if one), values[-1])


def _all(*values: Any) -> Any:
    return next((one for one in values if not one), values[-1])


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda *numbers: sum(numbers),
    "and": _all,
    "default": lambda fallback, value=None: value or fallback,
    "dict": lambda *pairs: dict(zip(pairs[::2], pairs[1::2], strict=True)),
    "eq": lambda one, other: one == other,
    "fail": _fail,
    "gt": lambda one, other: one > other,
    "hasKey": lambda mapping, key: key in mapping,
    "hasPrefix": lambda prefix, text: text.startswith(prefix),
    "int": lambda value: int(value or 0),
    "join": lambda sign, parts: sign.join(parts),
    "list": lambda *parts: list(parts),
    "lt": lambda one, other: one < other,
    "nindent": _indented,
    "not": lambda value: not value,
    "or": _any,
    "printf": lambda form, *parts: form % parts,
    "quote": lambda value: f'"{_text(value)}"',
    "required": _required,
    "set": _put,
    "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "sub": lambda one, other: one - other,
    "toYaml": lambda value: yaml.safe_dump(value).rstrip().removesuffix("\n..."),
}
