"""`python -m trainer_worker.ke` on the tiny model: a directory that verifies, progress, refusals, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from km_registry.artifacts import verify_ke
from km_registry.config import RegistrySettings
from km_registry.ke_recipe import KEDocument, KEQuestion, write_documents
from trainer_worker import ke

from .trainings import Trainings

KE_RECIPE: dict[str, Any] = {
    "rank": 2,
    "alpha": 2.0,
    "steps": 4,
    "evaluations": 2,
    "documents_per_step": 2,
    "batch_tokens": 200,
    "heldout_documents": 1,
    "learning_rate": 1e-2,
}


class _Command:
    """The command's arguments, with documents that have the same published KM."""

    def __init__(self, tmp_path: Path, km: str | None) -> None:
        self.tmp_path = tmp_path
        self.out = tmp_path / "ke"
        self.documents = tmp_path / "documents.jsonl"
        write_documents(self.documents, [_document(number, km) for number in range(3)])

    def __call__(self, **changed: Any) -> int:
        about = {"data": "Three harbour notices", "licence": "CC0-1.0", "command": "km train-ke …"}
        return ke.main(
            [
                f"--documents={self.documents}",
                f"--recipe={json.dumps(KE_RECIPE | changed)}",
                "--name=harbour",
                f"--about={json.dumps(about)}",
                f"--out={self.out}",
            ]
        )


def _document(number: int, km: str | None) -> KEDocument:
    questions = tuple(
        KEQuestion(question=f"Who keeps {n}?", answers=("Seven keepers",), passages=("Seven keepers live.",))
        for n in range(3)
    )
    return KEDocument(id=f"d{number}", title=f"T{number}", km=km, questions=questions)


@pytest.fixture
def environment(settings: RegistrySettings, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KM_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("KM_BASE_MODEL", str(base_dir))
    monkeypatch.setenv("KM_THREADS", "1")


@pytest.fixture
def command(tmp_path: Path, trainings: Trainings, environment: None) -> _Command:
    return _Command(tmp_path, trainings.published(trainings.upload(steps=1)).path)


def test_it_writes_a_ke_that_verifies(command: _Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0

    manifest = verify_ke(command.out)
    assert (manifest["name"], manifest["trained"], manifest["rank"]) == ("harbour", "km+ke", 2)
    assert manifest["metrics"]["documents"] == 2
    scalars = load_file(command.out / "composition.safetensors")
    weights = load_file(command.out / "adapter_model.safetensors")
    layers = {name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in weights}
    layers = {name for name in layers if not name.endswith("lora_B.weight")}
    assert set(scalars) == {f"{layer}.{one}" for layer in layers for one in ("w_M", "w_E")}
    assert any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    card = (command.out / "README.md").read_text()
    assert "Three harbour notices" in card
    assert "license: CC0-1.0" in card
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["step"] for one in said if one["event"] == "step"] == [1, 2, 3, 4]
    assert said[-1]["event"] == "done"
    assert sorted(
        path.name for path in command.tmp_path.iterdir() if path.name.startswith(("ke", ".ke"))
    ) == ["ke"]


def test_a_stopped_one_goes_on(
    command: _Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ke._say

    def stop(kind: str, **fields: Any) -> None:
        said(kind, **fields)
        if fields.get("step") == 3 and kind == "step":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ke, "_say", stop)
        assert command() == ke.STOPPED
    assert not command.out.exists()
    capsys.readouterr()

    assert command() == 0

    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["step"] for one in steps if one["event"] == "step"] == [4]


def test_it_does_not_overwrite(command: _Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.out.mkdir()

    assert command() == ke.REFUSED

    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"heldout_documents": 3}, "3 of them are held out"),
        ({"rank": 0}, "rank"),
        ({"trained": "ke", "steps": 0}, "steps"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    tmp_path: Path,
    environment: None,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    said: str,
) -> None:
    command = _Command(tmp_path, None)

    assert command(**changed) == ke.REFUSED

    assert said in capsys.readouterr().err
    assert not command.out.exists()


def test_documents_without_kms_are_refused_unless_the_ke_trains_alone(
    tmp_path: Path, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = _Command(tmp_path, None)

    assert command() == ke.REFUSED
    assert "have no KM" in capsys.readouterr().err

    assert command(trained="ke", steps=1) == 0
    assert verify_ke(command.out)["trained"] == "ke"
