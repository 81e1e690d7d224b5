"""The paper's base models on PyTorch's meta device: the real shapes, without weights.

DeBERTaV3-base, Llama-2-7B, Phi-1.5, ViT-B/16, Stable Diffusion 1.5's UNet and ControlNet's hint encoder. Nothing is
downloaded or allocated, so exact counts are possible on any machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ether.errors import ConfigurationError, one_of
from ether.silence import quiet


@dataclass(frozen=True)
class Architecture:
    """How to build one model without weights, and the parts that the paper adapts and counts."""

    build: Callable[..., Any]
    model_type: str  # key of ether.methods.layer_sets.LAYER_SETS
    layer_set: str  # the set the paper adapts, unless a caller names another
    source: str  # where the configuration values come from
    layers: int = 0  # number of transformer layers, if they are all identical
    head: tuple[str, ...] = ()  # modules that a task adds and trains in full
    peft_options: tuple[tuple[str, Any], ...] = ()  # for example the task type, which determines the head that PEFT trains


# Values of the configuration files named in ARCHITECTURES; all other values are the defaults of the library.
DEBERTA_V3_BASE: dict[str, Any] = {
    "vocab_size": 128_100,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "pooler_hidden_size": 768,
}
LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
PHI_1_5: dict[str, Any] = {
    "vocab_size": 51_200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
VIT_B16: dict[str, Any] = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
}
SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def _deberta_v3_base(num_labels: int = 3, layers: int = 12) -> nn.Module:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(**{**DEBERTA_V3_BASE, "num_labels": num_labels, "num_hidden_layers": layers})
    return DebertaV2ForSequenceClassification(config)


def _llama_2_7b(layers: int = 32, attention: str = "eager") -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**LLAMA_2_7B, "num_hidden_layers": layers, "attn_implementation": attention})
    return LlamaForCausalLM(config)


def _phi_1_5(layers: int = 24, attention: str = "eager") -> nn.Module:
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(**{**PHI_1_5, "num_hidden_layers": layers, "attn_implementation": attention})
    return PhiForCausalLM(config)


def _vit_b16(num_labels: int = 0, layers: int = 12) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**{**VIT_B16, "num_labels": num_labels, "num_hidden_layers": layers})  # 0 labels: no head
    return ViTForImageClassification(config)


def _sd15_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**SD15_UNET)


def _control_encoder() -> nn.Module:
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    return ControlNetConditioningEmbedding(conditioning_embedding_channels=320, block_out_channels=(16, 32, 96, 256))


def _control_time_embedding() -> nn.Module:
    from diffusers.models.embeddings import TimestepEmbedding

    return TimestepEmbedding(in_channels=320, time_embed_dim=1280)


ARCHITECTURES: dict[str, Architecture] = {
    "deberta-v3-base": Architecture(
        _deberta_v3_base,
        "deberta-v2",
        "all-linear",
        "config.json of microsoft/deberta-v3-base",
        12,
        head=("classifier",),
        peft_options=(("task_type", "SEQ_CLS"),),
    ),
    "llama-2-7b": Architecture(_llama_2_7b, "llama", "query-value", "config.json of meta-llama/Llama-2-7b-hf", 32),
    "phi-1.5": Architecture(_phi_1_5, "phi", "query-value", "config.json of microsoft/phi-1_5", 24),
    "vit-b16": Architecture(
        _vit_b16, "vit", "all-linear", "config.json of google/vit-base-patch16-224-in21k", 12, head=("classifier",)
    ),
    "sd15-unet": Architecture(_sd15_unet, "unet", "attention", "unet/config.json of stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "control-encoder": Architecture(
        _control_encoder, "", "", "hint encoder of ControlNet (Zhang et al., 2023): 8 convolutions, 3 -> 320 channels"
    ),
    "control-time-embedding": Architecture(
        _control_time_embedding,
        "",
        "",
        "timestep MLP of ControlNet, 320 -> 1280 -> 1280, which is not part of its hint encoder",
    ),
}


def architecture(name: str) -> Architecture:
    """The entry of ARCHITECTURES; raises ConfigurationError for an unknown name."""
    if name not in ARCHITECTURES:
        raise one_of("architecture", name, ARCHITECTURES, "ether/measures/architectures.py")
    return ARCHITECTURES[name]


def meta_model(name: str, **size: Any) -> nn.Module:
    """The model `name` of ARCHITECTURES on the meta device, in the implementation of its library.

    `size` is passed to its builder: `layers` for the number of transformer layers (not for the UNet), `num_labels` for the
    head of deberta-v3-base (default 3, as for MNLI) and vit-b16 (default 0, no head). Raises ConfigurationError for an unknown
    architecture or size argument.
    """
    entry = architecture(name)
    with torch.device("meta"), quiet():
        try:
            return entry.build(**size)
        except TypeError as error:
            raise ConfigurationError(f"The architecture {name} does not take {size}: {error}.") from error
