"""The files of an adapter as they are read: JSON objects and tensors, or an error that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from km_registry.errors import ArtifactError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
#: w_M and w_E of every layer that a KE adapts.
COMPOSITION = "composition.safetensors"
#: What PEFT writes before a layer's name.
PREFIX = "base_model.model."

#: Names of tensors, each with its dtype, shape and data (bytes), as safetensors gives them.
Tensors = list[tuple[str, dict[str, Any]]]

_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in the file. ArtifactError, which ends with the remedy, when there is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path.parent.name} lacks {path.name}; {remedy}") from None
    except ValueError as error:
        raise ArtifactError(f"{path.name} is not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path.name} is not a JSON object; {remedy}")
    return value


def read_tensors(path: Path, remedy: str) -> Tensors:
    """The tensors of the safetensors file, all floating-point. ArtifactError, with the remedy, otherwise."""
    try:
        tensors: Tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise ArtifactError(f"{path.parent.name} lacks {path.name}; {remedy}") from None
    except SafetensorError as error:
        raise ArtifactError(f"{path.name} is not a safetensors file ({error}); {remedy}") from error
    if not tensors:
        raise ArtifactError(f"{path.name} holds no tensor; {remedy}")
    for name, tensor in tensors:
        if tensor["dtype"] not in (*_FLOATS, "BF16"):
            raise ArtifactError(
                f"tensor {name} in {path.name} holds {tensor['dtype']}, not floating-point numbers; {remedy}"
            )
    return tensors


def is_finite(tensor: dict[str, Any]) -> bool:
    """Whether no number of the tensor is infinite or NaN."""
    if tensor["dtype"] == "BF16":
        # NumPy has no bfloat16; infinities and NaNs are those whose exponent bits are all ones.
        exponents = np.frombuffer(tensor["data"], dtype="<u2") & 0x7F80
        return bool((exponents != 0x7F80).all())
    return bool(np.isfinite(np.frombuffer(tensor["data"], dtype=_FLOATS[tensor["dtype"]])).all())


def as_float32(tensor: dict[str, Any]) -> NDArray[np.float32]:
    """The tensor in float32, which holds every float16 and bfloat16 number exactly."""
    return as_stored(tensor).astype(np.float32, copy=False)


def as_stored(tensor: dict[str, Any]) -> NDArray[np.floating]:
    """The tensor as it is stored, without a copy; bfloat16, which NumPy does not have, in float32."""
    if tensor["dtype"] == "BF16":
        halves = np.frombuffer(tensor["data"], dtype="<u2").astype("<u4") << 16
        return halves.view("<f4").reshape(tensor["shape"])
    stored = np.frombuffer(tensor["data"], dtype=_FLOATS[tensor["dtype"]])
    return stored.reshape(tensor["shape"])
