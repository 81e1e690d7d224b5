"""A tiny, randomly initialised Llama in the format of Llama-2, to test the loading code of the paper scale.

    python -m ether.standins llama MIRROR --id meta-llama/Llama-2-7b-hf --text FILE.parquet

writes ``MIRROR/models/<id>/``: configuration, safetensors, and a byte-fallback BPE tokenizer with Llama-2's special tokens
that is trained on some of the texts. The model's predictions have no meaning; it tests that every file is found and that
tokenisation, training and evaluation run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ether.errors import MissingResourceError

HUB_ID = "meta-llama/Llama-2-7b-hf"
TEXT = "datasets/tatsu-lab/alpaca/default/train.parquet"  # training texts of the tokenizer in a mirror
WIDTH = 512  # has to be divisible by the 256 blocks of the paper's OFT


def write(folder: Path, texts: Iterable[str], *, vocabulary: int = 1200, layers: int = 2, seed: int = 0) -> Path:
    """Write the model and its tokenizer.

    Args:
        folder: the folder for ``from_pretrained``.
        texts: training texts of the tokenizer.
        vocabulary: maximum number of tokens, including the 256 bytes and three special tokens.
        layers: number of transformer layers.
        seed: of the weights.

    Returns:
        The folder.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # As for Llama-2: a space is "▁", and every text begins with one.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
        max_token_length=12,
    )
    words = [f"▁{word}" for text in texts for word in text.split()]
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_mirror(mirror: Path, *, hub_id: str = HUB_ID, text: Path | None = None) -> Path:
    """Write a stand-in under ``<mirror>/models/<hub id>``.

    Args:
        mirror: root of the mirror; other models in it are not changed.
        hub_id: of the model to replace.
        text: parquet file with a column ``text`` for the tokenizer, by default Alpaca's in the mirror.

    Returns:
        The folder.

    Raises:
        MissingResourceError: there is no such file, or it has no column ``text``.
    """
    import pyarrow.parquet

    file = text or mirror / TEXT
    if not file.is_file():
        raise MissingResourceError(
            f"The text for the tokenizer, {file}, does not exist. Give a parquet file with a column `text`."
        )
    if "text" not in pyarrow.parquet.read_schema(file).names:
        raise MissingResourceError(f"{file} has no column `text`, which the tokenizer is trained on. Give another parquet file.")
    texts = pyarrow.parquet.read_table(file, columns=["text"])["text"].to_pylist()[:500]
    return write(mirror / "models" / hub_id, texts)
