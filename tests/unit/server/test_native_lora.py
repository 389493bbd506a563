"""The LoRA operator in C: built once, used only where it can be and computes what it should."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from server.engine import native_lora
from server.engine.masked_lora import JoinedWeights

# torch warns about its own insides when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


def said(logs: list[object]) -> str:
    """Everything that was logged."""
    return " ".join(map(str, logs))


def test_it_is_built_once(tmp_path: Path) -> None:
    first = native_lora.built(tmp_path / "compiled")
    assert first is not None
    made = first.stat().st_mtime_ns
    assert native_lora.built(tmp_path / "compiled") == first
    assert first.stat().st_mtime_ns == made
    assert list(first.parent.iterdir()) == [first]
    assert native_lora.agrees(native_lora.NativeLora(first))


def test_without_a_compiler_torch_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with capture_logs() as logs:
        assert native_lora.built(tmp_path) is None
    assert "install gcc" in said(logs)


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", shutil.which("false") or "")
    with capture_logs() as logs:
        assert native_lora.built(tmp_path) is None
    assert "not compiled" in said(logs)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_no_reason_not_to_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with capture_logs() as logs:
        assert native_lora.built(tmp_path / "file" / "compiled") is None
    assert "not compiled" in said(logs)


def test_tensors_of_other_sizes_are_left_to_torch(tmp_path: Path) -> None:
    path = native_lora.built(tmp_path)
    assert path is not None
    library = native_lora.NativeLora(path)
    weights = JoinedWeights([torch.ones(2, 1, 4, 16)], [torch.ones(2, 1, 24, 4)])
    layer = native_lora.NativeLayer(weights, 1.0)
    fits = {"y": torch.zeros(3, 24), "x": torch.zeros(3, 16)}
    assert library.takes(**fits, layer=layer)
    for other in (
        {"x": torch.zeros(3, 15)},
        {"y": torch.zeros(3, 23)},
        {"y": torch.zeros(2, 24)},
        {"y": torch.zeros(24, 3).t()},
        {"x": torch.zeros(3, 16, dtype=torch.bfloat16)},
    ):
        assert not library.takes(**(fits | other), layer=layer)


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_a_damaged_library_is_not_used(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lora.so").write_bytes(content)
    monkeypatch.setenv(native_lora.VARIABLE, str(tmp_path / "lora.so"))
    with capture_logs() as logs:
        assert native_lora.loaded() is None
    assert "cannot be loaded" in said(logs)
    # The next start makes it anew.
    assert list(tmp_path.iterdir()) == []


def test_one_that_computes_something_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (files("server.engine") / "native" / "lora.c").read_text(encoding="utf-8")
    compiler = shutil.which("cc")
    assert compiler is not None
    wrong = native_lora._compiled([compiler], source.replace("+ scale * sum", "- scale * sum"), tmp_path)
    assert wrong is not None
    monkeypatch.setenv(native_lora.VARIABLE, str(wrong))
    with capture_logs() as logs:
        assert native_lora.loaded() is None
    assert "computes something else" in said(logs)


def test_nothing_named_nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native_lora.VARIABLE, raising=False)
    assert native_lora.loaded() is None
