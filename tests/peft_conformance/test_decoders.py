"""PEFT's common tests (tests/testing_common.py of its source distribution) on small causal language models.

PEFT runs them on checkpoints from the hub; here the models are made from a configuration, so no network is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from . import source
from .cases import DECODERS

try:
    _common = source.load("testing_common")
    _set_init_weights_false = source.load("testing_utils").set_init_weights_false
except source.Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `llama` and `conv1d` (GPT-2), two layers of width 32 each."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    size["tie_word_embeddings"] = False
    LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, **size)
    ).save_pretrained(folder / "llama")
    GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0, **size)
    ).save_pretrained(folder / "conv1d")
    return folder


@pytest.mark.parametrize("model_name, config_cls, config_kwargs", DECODERS)
class TestDecoders(_common.PeftCommonTester):  # type: ignore[name-defined]
    transformers_class = AutoModelForCausalLM

    def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[1, 5, 9, 7], [1, 3, 4, 8]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @pytest.mark.parametrize(
        "common_test",
        [
            "_test_model_attr",
            "_test_adapter_name",
            "_test_prepare_for_training",
            "_test_load_model_low_cpu_mem_usage",
            "_test_from_pretrained_config_construction",
            "_test_load_multiple_adapters",
            "_test_inference_safetensors",
            "_test_training",
            "_test_training_layer_indexing",
            "_test_training_gradient_checkpointing",
            "_test_peft_model_device_map",
            "_test_delete_adapter",
            "_test_delete_inactive_adapter",
            "_test_delete_unknown_adapter_raises",
            "_test_adding_multiple_adapters_with_bias_raises",
            "_test_get_base_model_state_dict",
            "_test_generate",
            "_test_generate_half_prec",
        ],
    )
    def test_common(
        self, common_test: str, model_name: str, config_cls: type, config_kwargs: dict[str, Any], models: Path
    ) -> None:
        getattr(self, common_test)(str(models / model_name), config_cls, config_kwargs.copy())

    @pytest.mark.parametrize(
        "common_test",
        [
            "_test_save_pretrained",
            "_test_save_pretrained_selected_adapters",
            "_test_save_pretrained_adapter_name_substring",
            "_test_merge_layers",
            "_test_merge_layers_fp16",
            "_test_merge_layers_nan",
            "_test_merge_layers_multi",
            "_test_merge_layers_is_idempotent",
            "_test_safe_merge",
            "_test_unload_adapter",
            "_test_disable_adapter",
            "_test_lora_conversion",
        ],
    )
    def test_common_not_identity(
        self, common_test: str, model_name: str, config_cls: type, config_kwargs: dict[str, Any], models: Path
    ) -> None:
        arguments = _set_init_weights_false(config_cls, config_kwargs)
        getattr(self, common_test)(str(models / model_name), config_cls, arguments)

    def test_generate_positional_arguments(
        self, model_name: str, config_cls: type, config_kwargs: dict[str, Any], models: Path
    ) -> None:
        self._test_generate_pos_args(str(models / model_name), config_cls, config_kwargs, raises_err=False)

    def test_input_embeddings(self, model_name: str, config_cls: type, config_kwargs: dict[str, Any], models: Path) -> None:
        self._test_passing_input_embeds_works("", str(models / model_name), config_cls, config_kwargs)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_no_autocast(
        self, dtype: torch.dtype, model_name: str, config_cls: type, config_kwargs: dict[str, Any], models: Path
    ) -> None:
        self._test_add_adapter_no_autocast_adapter_dtype(str(models / model_name), config_cls, config_kwargs, dtype=dtype)
