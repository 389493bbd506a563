"""The engine with its model compiled: on a small Llama it writes what PEFT writes, in mixed batches."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from server.engine.base import Adapter, GenerationRequest
from server.engine.vllm_engine import EngineConfig, VllmEngine
from tests.adapters import write_llama_adapter

PROMPTS = ((11, 52, 7, 903), (5, 6, 7, 8, 9, 10, 11, 12), (400,), tuple(range(100, 160)))
TOKENS = 8


def save_small_llama(directory: Path, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Two layers of random weights, of sizes that vLLM's kernels take."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(config).float().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return config


def offline(directory: Path, adapter: Adapter | None) -> list[tuple[int, ...]]:
    """The same answers by transformers and PEFT."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter.path)
    answers = []
    for prompt in PROMPTS:
        given = torch.tensor([prompt])
        found = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            min_new_tokens=TOKENS,
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(tuple(found[0, len(prompt) :].tolist()))
    return answers


async def test_a_compiled_engine_keeps_adapters_apart(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    directory = tmp_path / "small-llama"
    config = save_small_llama(directory, tokenizer)
    adapters: list[Adapter | None] = [None]
    for number in (1, 2, 3):
        (tmp_path / f"km-{number}").mkdir()
        write_llama_adapter(tmp_path / f"km-{number}", config, seed=number)
        adapters.append(Adapter(f"km-{number}", number, tmp_path / f"km-{number}"))
    engine = VllmEngine(
        EngineConfig(
            model=directory,
            max_loras=2,
            max_model_len=256,
            kv_cache_bytes=64 * 2**20,
            max_num_seqs=16,
            dtype="float32",
            cache_dir=tmp_path / "compiled",
            compile=True,
        )
    )
    await engine.start()
    try:
        assert await engine._llm.collective_rpc("km_native") == [True]
        requests = [
            GenerationRequest(prompt, TOKENS, adapter=adapter, cache_salt=f"{n}", ignore_eos=True)
            for n, (adapter, prompt) in enumerate((a, p) for a in adapters for p in PROMPTS)
        ]
        # First one alone, then three that take turns in two slots: what is written into a slot after its
        # layer was first computed is seen too.
        first = await engine.generate(requests[len(PROMPTS)])
        together = await asyncio.gather(*(engine.generate(request) for request in requests))
    finally:
        await engine.close()
    expected = [answer for adapter in adapters for answer in offline(directory, adapter)]
    assert [answer.token_ids for answer in together] == expected
    assert first.token_ids == expected[len(PROMPTS)]
    assert all(len(set(expected[n :: len(PROMPTS)])) == len(adapters) for n in range(len(PROMPTS)))
