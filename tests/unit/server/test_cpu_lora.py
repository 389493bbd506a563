"""The LoRA operator on mixed batches, and its installation into vLLM."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from server.engine import cpu_lora, native_lora
from server.engine.masked_lora import JoinedWeights, plan_batch

# torch and vLLM warn about their own insides when they are imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:vllm"),
]

SLOTS, RANK, INNER = 4, 8, 24
QKV = (20, 6, 6)
GATE_UP = (18, 18)
MIXED = [2, -1, 0, 0, -1, 3, 2, -1, -1, 1, 0]
BATCHES = {
    "mixed": MIXED,
    "all base": [-1] * 7,
    "all one": [1] * 6,
    "one and base": [-1, 1, -1, 1],
    "a row each": [0, 1, 2, 3],
    "prefill": [0] * 40 + [-1] * 20 + [2] * 33 + [3] + [0],
    "last slot only": [3, -1, 3],
    "single base row": [-1],
}


class Layer:
    """The stacked weights of a layer as vLLM makes them, and a plain reference of what they mean."""

    def __init__(self, slices: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        seeded = torch.Generator().manual_seed(sum(slices))
        self.slices = slices
        self.a = tuple(torch.zeros(SLOTS, 1, RANK, INNER, dtype=dtype) for _ in slices)
        self.b = tuple(torch.zeros(SLOTS, 1, out, RANK, dtype=dtype) for out in slices)
        self.generator = seeded
        for slot in range(SLOTS):
            self.load(slot)

    def load(self, slot: int, rank: int = RANK) -> None:
        """Fill a slot with an adapter of this rank, as vLLM does."""
        for stacked in (*self.a, *self.b):
            stacked[slot] = 0
        for stacked in self.a:
            stacked[slot, 0, :rank].copy_(torch.randn(rank, INNER, generator=self.generator))
        for stacked in self.b:
            shape = stacked.shape[2], rank
            stacked[slot, 0, :, :rank].copy_(torch.randn(shape, generator=self.generator))

    def inputs(self, rows: int) -> tuple[Tensor, Tensor]:
        dtype = self.a[0].dtype
        x = torch.randn(rows, INNER, generator=self.generator).to(dtype)
        return torch.randn(rows, sum(self.slices), generator=self.generator).to(dtype), x

    def reference(self, y: Tensor, x: Tensor, slots: list[int]) -> Tensor:
        expected = y.double()
        for row, slot in enumerate(slots):
            if slot < 0:
                continue
            parts = [
                x[row].double() @ a[slot, 0].double().t() @ b[slot, 0].double().t()
                for a, b in zip(self.a, self.b, strict=True)
            ]
            expected[row] += torch.cat(parts)
        return expected


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator in C."""
    found = native_lora.built(tmp_path_factory.mktemp("compiled"))
    assert found is not None
    return found


@pytest.fixture(params=["torch", "native"], autouse=True)
def operator(request: pytest.FixtureRequest, library: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything holds for both."""
    if request.param == "native":
        monkeypatch.setenv(native_lora.VARIABLE, str(library))
    return str(request.param)


def wrapper_for(slots: list[int], kind: str = "masked"):
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from server.engine.masked_punica import MaskedPunicaWrapper

    cls = MaskedPunicaWrapper if kind == "masked" else PunicaWrapperCPU
    wrapper = cls(256, max_batches=64, device="cpu")
    ids = tuple(slot + 1 if slot >= 0 else 0 for slot in slots)
    mapping = SimpleNamespace(index_mapping=ids, prompt_mapping=ids, is_prefill=True)
    wrapper.update_metadata(mapping, list(range(1, SLOTS + 1)), SLOTS + 1, 100)
    return wrapper


def apply(wrapper, layer: Layer, y: Tensor, x: Tensor) -> Tensor:
    result = y.clone()
    wrapper.add_lora_linear(result, x, layer.a, layer.b, 1.0, layer.slices)
    return result


@pytest.mark.parametrize("slices", [QKV, GATE_UP, (30,)], ids=["qkv", "gate_up", "plain"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_linear_equals_the_reference_and_leaves_base_rows_bitwise(
    batch: list[int], slices: tuple[int, ...]
) -> None:
    layer = Layer(slices)
    y, x = layer.inputs(len(batch))
    expected = layer.reference(y, x, batch)
    result = apply(wrapper_for(batch), layer, y, x)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-4)
    base = torch.tensor([slot < 0 for slot in batch])
    assert torch.equal(result[base], y[base])
    if not base.all():
        assert not torch.allclose(result[~base], y[~base])


def test_stock_operator_leaks_the_last_slot_into_base_rows() -> None:
    layer = Layer(QKV)
    y, x = layer.inputs(len(MIXED))
    leaked = apply(wrapper_for(MIXED, "stock"), layer, y, x)
    as_if = [SLOTS - 1 if slot < 0 else slot for slot in MIXED]
    torch.testing.assert_close(leaked.double(), layer.reference(y, x, as_if), rtol=1e-4, atol=1e-3)


def test_bfloat16_is_summed_in_float32() -> None:
    layer = Layer(QKV, torch.bfloat16)
    y, x = layer.inputs(len(MIXED))
    result = apply(wrapper_for(MIXED), layer, y, x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), layer.reference(y, x, MIXED), rtol=1e-2, atol=0.05)


def test_a_slot_filled_after_the_first_use_is_seen() -> None:
    layer = Layer(QKV)
    wrapper = wrapper_for(MIXED)
    y, x = layer.inputs(len(MIXED))
    before = apply(wrapper, layer, y, x)
    layer.load(2)
    after = apply(wrapper, layer, y, x)
    torch.testing.assert_close(after.double(), layer.reference(y, x, MIXED), rtol=1e-5, atol=1e-4)
    changed = torch.tensor([slot == 2 for slot in MIXED])
    assert not torch.allclose(after[changed], before[changed])
    assert torch.equal(after[~changed], before[~changed])


def test_a_slot_can_be_filled_after_use_in_inference_mode() -> None:
    layer = Layer(QKV)
    wrapper = wrapper_for(MIXED)
    y, x = layer.inputs(len(MIXED))
    with torch.inference_mode():
        apply(wrapper, layer, y, x)
    layer.load(2)
    after = apply(wrapper, layer, y, x)
    torch.testing.assert_close(after.double(), layer.reference(y, x, MIXED), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("batch", [MIXED, [1] * 6, [0, 1, 2, 3]], ids=["mixed", "one", "a row each"])
@pytest.mark.parametrize("slices", [QKV, GATE_UP, (30,)], ids=["qkv", "gate_up", "plain"])
def test_adapters_of_any_rank_share_a_batch(slices: tuple[int, ...], batch: list[int]) -> None:
    layer = Layer(slices)
    for slot, rank in enumerate((RANK, 3, 0, 1)):
        layer.load(slot, rank)
    y, x = layer.inputs(len(batch))
    result = apply(wrapper_for(batch), layer, y, x)
    torch.testing.assert_close(result.double(), layer.reference(y, x, batch), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("inference", [False, True], ids=["normal mode", "inference mode"])
def test_only_what_an_adapter_fills_is_multiplied(inference: bool) -> None:
    layer = Layer(QKV)
    joined = JoinedWeights(layer.a, layer.b)
    with torch.inference_mode(inference):
        assert [joined.width(slot) for slot in range(SLOTS)] == [RANK * len(QKV)] * SLOTS
        # The same slot with another adapter, as when one loaded for a trial run is replaced.
        layer.load(1, 3)
        assert joined.width(1) == 3 * len(QKV)
        layer.load(1, 5)
        assert joined.width(1) == 5 * len(QKV)
        layer.load(1, 0)
        assert joined.width(1) == 0


def test_slices_of_unequal_rank_are_refused() -> None:
    a = tuple(torch.zeros(1, 1, rank, INNER) for rank in (4, 8))
    b = tuple(torch.zeros(1, 1, 6, rank) for rank in (4, 8))
    with pytest.raises(RuntimeError, match=r"ranks \[4, 8\]"):
        JoinedWeights(a, b)


def test_a_broken_slot_stays_in_its_own_rows() -> None:
    layer = Layer(GATE_UP)
    for stacked in (*layer.a, *layer.b):
        stacked[1] = float("nan")
    for batch in (MIXED, BATCHES["a row each"], [0, 2, 3, -1]):
        y, x = layer.inputs(len(batch))
        result = apply(wrapper_for(batch), layer, y, x)
        other = torch.tensor([slot != 1 for slot in batch])
        assert torch.isfinite(result[other]).all()
        assert torch.isnan(result[~other]).all()


def test_padding_rows_are_left_alone_and_missing_rows_refused() -> None:
    layer = Layer(QKV)
    y, x = layer.inputs(len(MIXED) + 3)
    result = apply(wrapper_for(MIXED), layer, y, x)
    assert torch.equal(result[-3:], y[-3:])
    y, x = layer.inputs(len(MIXED) - 1)
    with pytest.raises(RuntimeError, match="rows and adapters would be mixed up"):
        apply(wrapper_for(MIXED), layer, y, x)


def test_shrink_then_expand_equals_linear() -> None:
    layer = Layer(QKV)
    wrapper = wrapper_for(MIXED)
    y, x = layer.inputs(len(MIXED))
    hidden = torch.zeros(len(QKV), len(MIXED), RANK)
    wrapper.add_shrink(hidden, x, layer.a, 1.0)
    result = y.clone()
    wrapper.add_expand(result, hidden, layer.b, QKV)
    torch.testing.assert_close(result, apply(wrapper, layer, y, x), rtol=1e-5, atol=1e-4)


def test_logits_take_one_row_per_sample() -> None:
    layer = Layer((40,))
    y, x = layer.inputs(len(MIXED))
    padded = torch.cat([y, torch.ones(len(MIXED), 2)], dim=1)
    wrapper_for(MIXED).add_lora_logits(padded, x, layer.a[0], layer.b[0], 1.0)
    torch.testing.assert_close(padded[:, :40].double(), layer.reference(y, x, MIXED), rtol=1e-5, atol=1e-4)
    assert torch.equal(padded[:, 40:], torch.ones(len(MIXED), 2))


def test_no_work_without_adapters() -> None:
    wrapper = wrapper_for([-1, -1])
    # None in place of every tensor: touching any of them would fail.
    wrapper.add_lora_linear(None, None, None, None, 1.0, None)
    wrapper.add_shrink(None, None, None, 1.0)
    wrapper.add_expand(None, None, None, None)
    wrapper.add_lora_embedding(None, None, None)
    wrapper.add_lora_logits(None, None, None, None, 1.0)


def test_plan_uses_views_for_runs_and_one_block_for_many_slots() -> None:
    runs = plan_batch([0, 0, -1, 1])
    assert [(g.slot, g.start, g.stop, g.index) for g in runs.groups] == [(0, 0, 2, None), (1, 3, 4, None)]
    assert runs.padded is None
    many = plan_batch([2, 0, 1, 2])
    assert many.padded is not None
    assert many.padded.rows.tolist() == [1, 2, 0, 3]
    assert plan_batch([0] * 100 + [1, 2]).padded is None


def stock_platform(wrapper: str = cpu_lora.STOCK_WRAPPER) -> type:
    def check_and_update_config(_cls: type, config: SimpleNamespace) -> None:
        config.compilation_config.mode = "none, by the platform"

    parts = {
        "get_punica_wrapper": classmethod(lambda _cls: wrapper),
        "check_and_update_config": classmethod(check_and_update_config),
    }
    return type("FakePlatform", (), parts)


@pytest.mark.parametrize(("asked", "lora"), [(True, True), (False, True), (True, False)])
def test_a_model_with_lora_is_compiled_when_that_is_asked_for(
    asked: bool, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.config import CompilationMode

    platform = stock_platform()
    cpu_lora.install(platform, "0.32.0")
    if asked:
        monkeypatch.setenv(cpu_lora.COMPILE, "1")
    compilation = SimpleNamespace(mode=CompilationMode.VLLM_COMPILE)
    config = SimpleNamespace(compilation_config=compilation, lora_config=object() if lora else None)
    platform.check_and_update_config(config)
    compiled = compilation.mode == CompilationMode.DYNAMO_TRACE_ONCE
    assert compiled is (asked and lora)


def test_small_steps_go_through_the_compiled_operator_and_prompts_do_not(operator: str) -> None:
    decode, prompt = wrapper_for(MIXED), wrapper_for(BATCHES["prefill"])
    assert decode.is_native is (operator == "native")
    assert (decode._rows is not None) is (operator == "native")
    assert prompt._rows is None


def test_compiled_the_operator_does_the_same() -> None:
    layer = Layer(QKV)
    y, x = layer.inputs(len(MIXED))
    wrapper = wrapper_for(MIXED)

    def run(y: Tensor, x: Tensor) -> Tensor:
        result = y * 1.0
        wrapper.add_lora_linear(result, x, layer.a, layer.b, 1.0, layer.slices)
        return result

    try:
        found = torch.compile(run, backend="aot_eager", fullgraph=True)(y, x)
    finally:
        torch.compiler.reset()
    assert torch.equal(found, apply(wrapper, layer, y, x))


def test_install_replaces_the_operator_once() -> None:
    platform = stock_platform()
    cpu_lora.install(platform, "0.32.0")
    cpu_lora.install(platform, "0.32.0+cpu")
    assert platform.get_punica_wrapper() == cpu_lora.OUR_WRAPPER


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0", "nonsense"])
def test_other_versions_are_refused(version: str) -> None:
    platform = stock_platform()
    with pytest.raises(RuntimeError, match="not verified"):
        cpu_lora.install(platform, version)
    assert platform.get_punica_wrapper() == cpu_lora.STOCK_WRAPPER


@pytest.mark.parametrize("platform", [type("Bare", (), {}), stock_platform("elsewhere.Operator")])
def test_another_hook_point_is_refused(platform: type) -> None:
    with pytest.raises(RuntimeError, match="cannot keep adapters apart"):
        cpu_lora.install(platform, "0.32.0")


def test_register_does_nothing_off_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.platforms

    platform = stock_platform()()
    platform.is_cpu = lambda: False
    monkeypatch.setattr(vllm.platforms, "current_platform", platform)
    cpu_lora.register()
    assert platform.get_punica_wrapper() == cpu_lora.STOCK_WRAPPER


def test_our_operator_can_be_found_by_its_name() -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from server.engine.masked_punica import MaskedPunicaWrapper

    assert resolve_obj_by_qualname(cpu_lora.OUR_WRAPPER) is MaskedPunicaWrapper


def test_a_missing_or_excluded_plugin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [SimpleNamespace(name=cpu_lora.PLUGIN_NAME)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    cpu_lora.require_plugin(None)
    cpu_lora.require_plugin("other,km_server")
    with pytest.raises(RuntimeError, match="Unset VLLM_PLUGINS"):
        cpu_lora.require_plugin("other")
    points.clear()
    with pytest.raises(RuntimeError, match="pip install"):
        cpu_lora.require_plugin(None)
