"""Named sets of adapted linear layers, by architecture.

The paper does not list its layer sets; they are inferred from its parameter counts. A set is a regular expression for
PEFT's ``target_modules`` (matched against the whole module name).
"""

from __future__ import annotations

from ether.errors import one_of

_BERT_LAYER = r".*encoder\.layer\.\d+\."

LAYER_SETS: dict[str, dict[str, str]] = {
    # transformers' model_type -> {set name: regular expression}
    "deberta-v2": {
        # GLUE, Table 4: all linear layers of every transformer block (App. C.3)
        "all-linear": _BERT_LAYER
        + r"(attention\.self\.(query|key|value)_proj|attention\.output\.dense|intermediate\.dense|output\.dense)",
        "query-value": _BERT_LAYER + r"attention\.self\.(query|value)_proj",
        "attention": _BERT_LAYER + r"attention\.(self\.(query|key|value)_proj|output\.dense)",
    },
    "bert": {
        "all-linear": _BERT_LAYER
        + r"(attention\.self\.(query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)",
        "query-value": _BERT_LAYER + r"attention\.self\.(query|value)",
        "attention": _BERT_LAYER + r"attention\.(self\.(query|key|value)|output\.dense)",
    },
    # Instruction tuning, Tables 5 and 10: q and v (inferred from the counts, not stated)
    "llama": {"query-value": r".*layers\.\d+\.self_attn\.(q|v)_proj"},
    "phi": {
        "query-value": r".*layers\.\d+\.self_attn\.(q|v)_proj",
        "query-key-value": r".*layers\.\d+\.self_attn\.(q|k|v)_proj",
    },
    # VTAB, Table 12: q, k, v as separate matrices, attention output and both feed-forward layers
    "vit": {
        "all-linear": r".*layers?\.\d+\.(attention\.attention\.(query|key|value)|attention\.output\.dense"
        r"|intermediate\.dense|output\.dense|attention\.[qkvo]_proj|mlp\.fc[12])",
    },
    # Stable Diffusion's UNet: Tables 2, 6, 11 (attention) and 3, 9 (attention and the GEGLU projection)
    "unet": {
        "attention": r".*attn[12]\.(to_q|to_k|to_v|to_out\.0)",
        "attention-geglu": r".*(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.0\.proj)",
    },
}

# The transformer blocks to which bottleneck adapters are added: module names of the outputs of the two residual sub-layers
BLOCK_OUTPUTS: dict[str, dict[str, str]] = {
    "deberta-v2": {
        "attention": _BERT_LAYER + r"attention\.output\.dense",
        "feed-forward": _BERT_LAYER + r"output\.dense",
    },
    "bert": {
        "attention": _BERT_LAYER + r"attention\.output\.dense",
        "feed-forward": _BERT_LAYER + r"output\.dense",
    },
}


def layer_set(model_type: str, name: str) -> str:
    """The regular expression of a named layer set.

    Raises:
        ConfigurationError: unknown architecture or set; the message lists the known ones.

    """
    if model_type not in LAYER_SETS:
        raise one_of("architecture", model_type, LAYER_SETS, "ether/methods/layer_sets.py (add its layer sets there)")
    if name not in LAYER_SETS[model_type]:
        raise one_of("layer set", name, LAYER_SETS[model_type], f"ether/methods/layer_sets.py for {model_type!r}")
    return LAYER_SETS[model_type][name]
