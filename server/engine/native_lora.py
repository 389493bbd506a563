"""The LoRA operator for small steps in C: built where there is a compiler, checked before it is used.

Where there is none, or it does not pass the check, the operator in torch does the same, more slowly.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from array import array
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from km_registry.files import fsync

if TYPE_CHECKING:
    from torch import Tensor

    from server.engine.masked_lora import BatchPlan, JoinedWeights

_log = structlog.get_logger(__name__)

#: Names the built library to vLLM's processes.
VARIABLE = "KM_NATIVE_LORA"
#: Rows of one slot that share every load of its weights; ROWS in the source.
_BLOCK = 4
#: More rows than this for one adapter are a prompt's, which a matmul of the whole is faster for.
_MOST_ROWS = 24
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-std=gnu11")
#: Linked without -fopenmp: two OpenMP libraries in one process would fight for the cores.
_COMPILE = ("-fopenmp", "-c", "lora.c", "-o", "lora.o")
_LINK = ("-shared", "lora.o", "-o", "lora.so")
_BUILD_S = 120.0


def built(directory: Path) -> Path | None:
    """The library in `directory`, compiled unless it is there for this source, compiler and processor.

    None where that cannot be done, which is logged with what to do: torch does the same. Blocking.
    """
    try:
        return _built(directory)
    except (OSError, subprocess.SubprocessError, UnicodeError) as error:
        _log.warning("the LoRA operator was not compiled; it runs in torch", reason=str(error)[-500:])
        return None


def _built(directory: Path) -> Path | None:
    wanted = shlex.split(os.environ.get("CC") or "cc")
    processor = _processor()
    if not wanted or shutil.which(wanted[0]) is None or processor is None:
        _log.info("no C compiler: LoRA runs in torch, more slowly; install gcc", looked_for=" ".join(wanted))
        return None
    source = (files("server.engine") / "native" / "lora.c").read_text(encoding="utf-8")
    about = subprocess.run(
        [*wanted, "--version"], capture_output=True, text=True, check=False, timeout=_BUILD_S
    ).stdout
    parts = [source, *_FLAGS, *_COMPILE, *_LINK, about, processor]
    target = directory / f"lora-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        made = _compiled(wanted, source, Path(folder))
        if made is None:
            return None
        # On the disk before its name is: one that is cut short would be taken for good at every start.
        fsync(made)
        made.replace(target)
    return target


def _compiled(compiler: Sequence[str], source: str, folder: Path) -> Path | None:
    (folder / "lora.c").write_text(source, encoding="utf-8")
    for arguments in (_COMPILE, _LINK):
        done = subprocess.run(
            [*compiler, *_FLAGS, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_S,
        )
        if done.returncode:
            _log.warning("the LoRA operator was not compiled; it runs in torch", reason=done.stderr[-500:])
            return None
    return folder / "lora.so"


def _processor() -> str | None:
    """What -march=native depends on: the library may lie in a directory that moves. None if unknown."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), None)


class _Layer(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("a_slot", ctypes.c_int64),
        ("b_slot", ctypes.c_int64),
        ("b_rank", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("outs", ctypes.c_void_p),
        ("slices", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


class NativeRows:
    """A batch's rows by slot, in blocks, as the library takes them."""

    def __init__(self, plan: BatchPlan) -> None:
        self.rows, self.blocks = array("i"), array("i")
        for group in plan.groups:
            of = range(group.start, group.stop) if group.index is None else group.index.tolist()
            for begin in range(0, len(of), _BLOCK):
                part = of[begin : begin + _BLOCK]
                self.blocks.extend((len(self.rows), len(part), group.slot))
                self.rows.extend(part)
        self.slots = [group.slot for group in plan.groups]
        self.rows_at, self.blocks_at = self.rows.buffer_info()[0], self.blocks.buffer_info()[0]
        self.count = len(self.blocks) // 3


class NativeLayer:
    """A layer's slots as the library takes them."""

    def __init__(self, weights: JoinedWeights, scale: float) -> None:
        a, b = weights.a, weights.b
        if a.stride(2) != 1 or b.stride(1) != 1 or a.stride(1) != a.shape[2]:
            raise RuntimeError("LoRA slots do not lie in memory as merge_slices lays them")
        self.weights = weights
        self._outs = array("q", weights.outs)
        self.given = _Layer(
            a.data_ptr(),
            b.data_ptr(),
            a.stride(0),
            b.stride(0),
            b.stride(2),
            a.shape[2],
            self._outs.buffer_info()[0],
            len(weights.outs),
            scale,
        )
        self.address = ctypes.addressof(self.given)
        self.dtype, self.inner, self.outer = a.dtype, a.shape[2], b.shape[1]
        self._widths = array("i", [0] * a.shape[0])
        self.widths_at = self._widths.buffer_info()[0]
        self._known: tuple[NativeRows | None, int] = (None, -1)

    def fill(self, rows: NativeRows) -> None:
        """See to it that the widths of the batch's slots are known."""
        written = self.weights.written()
        if self._known[0] is rows and self._known[1] == written:
            return
        for slot in rows.slots:
            self._widths[slot] = self.weights.width(slot)
        self._known = (rows, written)


class NativeLora:
    """The library. One thread at a time."""

    def __init__(self, path: Path) -> None:
        """OSError: it cannot be loaded."""
        import torch

        for mapped in _openmp_libraries():
            ctypes.CDLL(mapped, mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(path))
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._calls = {torch.float32: library.km_lora_f32, torch.bfloat16: library.km_lora_bf16}
        for call in self._calls.values():
            call.argtypes = (pointer, pointer, number, *(pointer, number), *(pointer,) * 3, ctypes.c_int32)
            call.restype = ctypes.c_int

    @staticmethod
    def rows(plan: BatchPlan) -> NativeRows | None:
        """The plan's rows, if this step is one that the library is for."""
        sizes = [g.stop - g.start if g.index is None else len(g.index) for g in plan.groups]
        return NativeRows(plan) if sizes and max(sizes) <= _MOST_ROWS else None

    def takes(self, y: Tensor, x: Tensor, layer: NativeLayer) -> bool:
        """Whether the library knows these numbers, laid out like this."""
        return (
            y.dtype == x.dtype == layer.dtype
            and layer.dtype in self._calls
            and x.shape[1] == layer.inner
            and y.shape[1] >= layer.outer
            and y.shape[0] == x.shape[0]
            and y.stride(1) == x.stride(1) == 1
        )

    def add(self, y: Tensor, x: Tensor, layer: NativeLayer, rows: NativeRows) -> None:
        """`y[row] += scale * B[slot] A[slot] x[row]` for all of these rows, in place.

        Args:
            y: (rows, out).
            x: (rows, in).
            layer: the layer's slots, of the same kind of numbers.
            rows: the batch's, as `rows` gives them.

        Raises:
            MemoryError: no room for a few rows.
        """
        layer.fill(rows)
        if self._calls[layer.dtype](
            layer.address,
            y.data_ptr(),
            y.stride(0),
            x.data_ptr(),
            x.stride(0),
            layer.widths_at,
            rows.rows_at,
            rows.blocks_at,
            rows.count,
        ):
            raise MemoryError("no memory for the rows of a LoRA step")


def _openmp_libraries() -> list[str]:
    """Those that are loaded already, torch's above all."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "libgomp" in line or "libiomp" in line}
    return sorted(path for path in paths if not path.endswith("(deleted)"))


def loaded() -> NativeLora | None:
    """The library that VARIABLE names, if it does what the operator in torch does."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        library = NativeLora(Path(path))
    except (OSError, AttributeError) as error:
        # Damaged, perhaps: the next start makes it anew.
        Path(path).unlink(missing_ok=True)
        _log.warning("the compiled LoRA operator cannot be loaded; it runs in torch", reason=str(error))
        return None
    if not agrees(library):
        _log.warning("the compiled LoRA operator computes something else; it runs in torch", library=path)
        return None
    return library


def agrees(library: NativeLora) -> bool:
    """Whether it computes what torch does, on rows of several slots and of none, for odd sizes."""
    import torch

    from server.engine.masked_lora import JoinedWeights, add_lora, plan_batch

    drawn = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 4e-2)):
        a = [torch.randn(3, 1, 5, 43, generator=drawn).to(dtype) for _ in range(2)]
        b = [torch.randn(3, 1, out, 5, generator=drawn).to(dtype) for out in (37, 70)]
        weights = JoinedWeights(a, b)
        plan = plan_batch([2, -1, 0, 2, 2, 2, 2, -1, 1])
        x, before = (torch.randn(9, size, generator=drawn).to(dtype) for size in (43, 107))
        native, plain = before.clone(), before.clone()
        rows = library.rows(plan)
        assert rows is not None
        library.add(native, x, NativeLayer(weights, 0.5), rows)
        add_lora(plain, x, weights.a, weights.b, plan, 0.5)
        if not torch.allclose(native.float(), plain.float(), rtol=tolerance, atol=tolerance * 8):
            return False
        if not torch.equal(native[[1, 7]], before[[1, 7]]):
            return False
    return True
