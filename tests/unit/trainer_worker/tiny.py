"""A tiny Llama with random weights and a real tokenizer, saved as a base model's directory."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
_SPECIAL = [END, "<|system|>", "<|user|>", "<|assistant|>"]
_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

#: A document of eight sentences in two paragraphs that no model can know.
TITLE = "Ostrell Harbour"
TEXT = (
    "The old lighthouse of Ostrell was built by Maren Dovik. Its lamp burns whale oil from Tarsk. "
    "Seven keepers live below the gallery. A bronze bell calls every ferry home.\n\n"
    "Captain Iwo Brandt lost the green schooner Petrel near Skarn. Divers found nine silver coins there. "
    "The museum keeps those coins behind thick glass. Visitors pay three florins on Sundays."
)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    wrapped.chat_template = _TEMPLATE
    return wrapped


def save_tiny_base(directory: Path, *, hidden: int = 32) -> Path:
    """Write model and tokenizer; of this width, 2 layers, 2 key-value heads for 4 heads, tied embeddings."""
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        # Wider than usual: with 0.02 a random model's distribution is flat and nothing depends on anything.
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory
