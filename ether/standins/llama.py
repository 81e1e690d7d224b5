"""A tiny randomly initialised Llama in Llama-2's format, to try the paper scale's loading code without its weights.

    python -m ether.standins.llama MIRROR --id meta-llama/Llama-2-7b-hf --text FILE.parquet

writes ``MIRROR/models/<id>/``: configuration, safetensors and a byte-fallback BPE tokenizer with Llama-2's special tokens,
learned from a few of the texts given. What it says means nothing; that every file is found, tokenised, trained on and
scored does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from ether.errors import EtherError, MissingResourceError

WIDTH = 512  # the paper's 256 blocks of OFT must divide it


def write(folder: Path, texts: Iterable[str], *, vocabulary: int = 1200, layers: int = 2, seed: int = 0) -> Path:
    """Makes the model and its tokenizer.

    Args:
        folder: where ``from_pretrained`` will look.
        texts: what the tokenizer is learned from.
        vocabulary: tokens at most, the 256 bytes and three special ones included.

    Returns:
        The folder.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Llama-2's own rules: a space is "▁", and every text begins with one.
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ether.standins.llama", description=__doc__)
    parser.add_argument("mirror", type=Path)
    parser.add_argument("--id", default="meta-llama/Llama-2-7b-hf", help="the hub id it stands in for")
    parser.add_argument("--text", type=Path, help="parquet file with a column `text`; Alpaca's in the mirror by default")
    options = parser.parse_args()
    import pyarrow.parquet

    file = options.text or options.mirror / "datasets/tatsu-lab/alpaca/default/train.parquet"
    try:
        if not file.is_file():
            raise MissingResourceError(f"{file} does not exist: give --text a parquet file with a column `text`.")
        texts = pyarrow.parquet.read_table(file, columns=["text"])["text"].to_pylist()[:500]
        print(write(options.mirror / "models" / options.id, texts))
    except EtherError as error:
        sys.exit(f"\n{error}\n")


if __name__ == "__main__":
    main()
