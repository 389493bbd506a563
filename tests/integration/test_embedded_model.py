"""The embedded base model from its wheel, really converted (half a minute)."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from km_registry.base_model import resolve


def test_converted_once_and_usable(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    said: list[str] = []
    first = resolve("embedded", tmp_path, said.append)
    conversions = list(said)
    second = resolve("embedded", tmp_path, said.append)

    assert first == second
    assert first.name == "SmolLM2-135M-Instruct"
    assert conversions[0] == "converting SmolLM2-135M-Instruct (0 s)"
    assert said == conversions, "the second time it must be found as it is"
    assert AutoConfig.from_pretrained(first.path).num_hidden_layers == 30
    tokenizer = AutoTokenizer.from_pretrained(first.path)
    assert tokenizer.decode(tokenizer.encode("The harbour opens at six.")) == "The harbour opens at six."
    assert tokenizer.chat_template
    with safe_open(first.path / "model.safetensors", "pt") as weights:
        assert str(weights.get_tensor("model.embed_tokens.weight").dtype) == "torch.bfloat16"
