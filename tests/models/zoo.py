"""Models nobody here wrote: from the configurations of `transformers`, small, random, offline."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5")

TOKENS, LENGTH, BATCH = 96, 16, 4


def tokens():
    ids = torch.randint(1, TOKENS, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": ids}


def images():
    return {"pixel_values": torch.rand(BATCH, 3, 16, 16), "labels": torch.randint(0, 4, (BATCH,))}


@dataclass(frozen=True)
class Entry:
    """How to build a model, and what it is fed.

    Attributes:
        model: Its class in `transformers`.
        config: Its configuration's.
        options: What the configuration is given.
        batch: Makes one batch.
        takes_data: Modules whose input is the data, which ask for no gradient.
    """

    model: str
    config: str
    options: dict[str, Any]
    batch: Callable[[], dict] = tokens
    takes_data: tuple[str, ...] = ()

    def build(self, **more):
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**{**self.options, **more})
        return getattr(transformers, self.model)(config)

    def batches(self, n=3):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return [self.batch() for _ in range(n)]


_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TEXT = {**_SIZES, "vocab_size": TOKENS, "max_position_embeddings": 32}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_GROUPED = {**_TEXT, "num_key_value_heads": 1, **_ENDS}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}

ZOO = {
    "gpt2": Entry(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, **_ENDS},
    ),
    "llama": Entry("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "bert": Entry("BertForMaskedLM", "BertConfig", _TEXT),
    "t5": Entry(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": TOKENS,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
        },
    ),
    "vit": Entry(
        "ViTForImageClassification",
        "ViTConfig",
        {**_SIZES, "image_size": 16, "patch_size": 4, "num_labels": 4},
        images,
        takes_data=("vit.embeddings.patch_embeddings.projection",),
    ),
    "mamba": Entry(
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": TOKENS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, **_ENDS},
    ),
    "mixtral": Entry("MixtralForCausalLM", "MixtralConfig", {**_EXPERTS, "num_local_experts": 4}),
    "qwen2-moe": Entry(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **_EXPERTS,
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "granite-moe": Entry(
        "GraniteMoeForCausalLM", "GraniteMoeConfig", {**_EXPERTS, "num_local_experts": 4}
    ),
}
