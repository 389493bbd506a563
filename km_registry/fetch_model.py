"""Child process that makes a base model's directory, so that its memory goes away with it.

Run as a script, never imported by the server: `fetch_model.py convert GGUF DIRECTORY` or
`fetch_model.py download HUB_ID`. The last line on stdout is the directory. Exit code 3 means that the
last line on stdout is the reason in words.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

#: What a model directory is made of; anything else at a hub (pickles above all) is left there.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt"]


class FetchError(Exception):
    """The model cannot be had."""


def convert(gguf: Path, directory: Path) -> Path:
    """Write the model in a GGUF file as a transformers directory with bf16 safetensors."""
    import gguf as library
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    class Reader(library.GGUFReader):  # type: ignore[misc]  # the library has no types
        """Slices plain arrays: of the million slices a vocabulary takes, those of a memmap cost twice."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    # transformers reads the file once for each of config, weights and tokenizer, and makes the table of
    # names once for every module: half of all the time.
    for part, made in {"GGUFReader": Reader, "get_tensor_name_map": library.get_tensor_name_map}.items():
        setattr(library, part, cache(made))
    folder, name = gguf.parent, gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def download(hub_id: str) -> Path:
    """Directory of the hub's model, from the local cache when it is complete there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except GatedRepoError as error:
        raise FetchError("access to it must be granted first (set HF_TOKEN)") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FetchError("the hub has no such model") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FetchError("it is not in the local cache and the hub cannot be reached") from error


def main(arguments: list[str]) -> int:
    """Run one of the two commands."""
    command, *rest = arguments
    try:
        made = convert(Path(rest[0]), Path(rest[1])) if command == "convert" else download(rest[0])
    except FetchError as error:
        sys.stdout.write(f"{error}\n")
        return 3
    sys.stdout.write(f"{made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
