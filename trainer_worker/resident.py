"""The base model as it is trained on here: files, tokenizer, device, number format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Self

import torch

from km_registry import base_model
from km_registry.base_model import BaseModel
from trainer_worker.config import TrainerSettings
from trainer_worker.device import device_and_dtype, keep_freed_memory
from trainer_worker.lora import attach_lora


@dataclass(frozen=True, slots=True)
class Resident:
    """What every training on this machine shares. May be shared by threads."""

    settings: TrainerSettings
    base: BaseModel
    tokenizer: Any
    #: The most tokens that the model reads at once.
    context_tokens: int
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def open(cls, settings: TrainerSettings, **more: Any) -> Self:
        """Set this process up for training; the model itself is loaded by `load_model`.

        Raises:
            BaseModelError: the base model cannot be found or read.
        """
        from transformers import AutoConfig, AutoTokenizer

        keep_freed_memory()
        torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
        base = base_model.resolve(settings.base_model, settings.data_dir)
        device, dtype = device_and_dtype()
        return cls(
            settings=settings,
            base=base,
            tokenizer=AutoTokenizer.from_pretrained(base.path),
            context_tokens=int(AutoConfig.from_pretrained(base.path).max_position_embeddings),
            device=device,
            dtype=dtype,
            **more,
        )

    @property
    def context(self) -> str:
        """What decides the numbers that are computed here, beside data and recipe."""
        return f"{self.base.fingerprint} {self.dtype}"

    @property
    def made(self) -> dict[str, Any]:
        """What a manifest says of the machine that trained."""
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    @property
    def teacher_batch_tokens(self) -> int:
        """Tokens in a forward pass of the teacher: as many as make full use of the device, and no more, since
        each token's attention is paid for every other one's in the pass."""
        return 256 if self.device.type == "cpu" else 2048

    def load_base(self) -> Any:
        """The base model, frozen, as transformers has it."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.base.path, dtype=self.dtype)
        return model.to(self.device).requires_grad_(False)

    def load_model(self) -> Any:
        """The base model, frozen, ready to take slots."""
        model = self.load_base()
        attach_lora(model)
        return model
