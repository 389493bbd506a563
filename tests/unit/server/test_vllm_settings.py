"""What vLLM is told, and that its environment stays its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from server.engine.vllm_settings import (
    allowed_rank,
    cpu_environment,
    environment,
    parse_cores,
    resolve_dtype,
    usable_cores,
)


@pytest.mark.parametrize(("rank", "allowed"), [(1, 8), (8, 8), (9, 16), (32, 32), (33, 64), (512, 512)])
def test_ranks_are_rounded_up(rank: int, allowed: int) -> None:
    assert allowed_rank(rank) == allowed


def test_a_rank_above_all_is_refused() -> None:
    with pytest.raises(ValueError, match="largest that vLLM supports"):
        allowed_rank(513)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({}, "float32"),
        ({"avx2": True}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_computes_it(
    capabilities: dict[str, bool], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto", on_cpu=True) == dtype
    assert resolve_dtype("auto", on_cpu=False) == "auto"
    assert resolve_dtype("float16", on_cpu=True) == "float16"


def test_cores_are_parsed() -> None:
    assert parse_cores("0-2,5") == {0, 1, 2, 5}
    with pytest.raises(ValueError, match="not a list of cores"):
        parse_cores("all")


def test_the_environment_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEFT", "as it was")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, cores = dict(os.environ), usable_cores()
    chosen = min(cores)
    with environment(model=tmp_path, log_level="ERROR"), cpu_environment(str(chosen)):
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert os.environ["VLLM_HOST_IP"] == "127.0.0.1"
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert usable_cores() == {chosen}
        os.environ["LD_PRELOAD"] = "something"
        del os.environ["LEFT"]
    assert dict(os.environ) == before
    assert usable_cores() == cores


def test_cores_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match="may not use"), cpu_environment(str(max(usable_cores()) + 1)):
        pass
