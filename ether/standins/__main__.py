"""``python -m ether.standins KIND MIRROR``: write models into a hub mirror, most of them tiny and random."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ether.errors import EtherError


def _llama(options: argparse.Namespace) -> list[Path]:
    from ether.standins import llama

    return [llama.write_mirror(options.mirror, hub_id=options.id or llama.HUB_ID, text=options.text)]


def _diffusion(options: argparse.Namespace) -> list[Path]:
    from ether.standins import diffusion

    models = (options.pipeline or diffusion.PIPELINE, options.clip or diffusion.CLIP, options.dino or diffusion.DINO)
    return diffusion.write_mirror(options.mirror, models=models, size=options.size, seed=options.seed)


def _vision(options: argparse.Namespace) -> list[Path]:
    from ether.standins import vision

    return [vision.write_mirror(options.mirror, hub_id=options.id or vision.HUB_ID, seed=options.seed)]


def _paper(options: argparse.Namespace) -> list[Path]:
    from ether.standins import paper

    return paper.write_mirror(options.mirror, seed=options.seed)


def _gguf(options: argparse.Namespace) -> list[Path]:
    from ether.standins import gguf

    return [gguf.write_mirror(options.mirror, options.file, options.id)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ether.standins", description="Write models into a hub mirror.")
    kinds = parser.add_subparsers(dest="kind", required=True)

    llama = kinds.add_parser("llama", help="a Llama with a tokenizer in the format of Llama-2")
    llama.add_argument("mirror", type=Path, help="root of the hub mirror")
    llama.add_argument("--id", help="hub id of the model to replace (default: that of Llama-2-7B)")
    llama.add_argument("--text", type=Path, help="parquet file with a column `text` (default: Alpaca's in the mirror)")
    llama.set_defaults(write=_llama)

    diffusion = kinds.add_parser("diffusion", help="a Stable Diffusion with CLIP and DINO")
    diffusion.add_argument("mirror", type=Path, help="root of the hub mirror")
    for part in ("pipeline", "clip", "dino"):
        diffusion.add_argument(f"--{part}", help=f"hub id of the {part} to replace (default: the paper's)")
    diffusion.add_argument("--size", type=int, default=32, help="side of the images, in pixels, a multiple of 16")
    diffusion.add_argument("--seed", type=int, default=0, help="of the weights")
    diffusion.set_defaults(write=_diffusion)

    vision = kinds.add_parser("vision", help="a vision transformer in the format of ViT-B/16")
    vision.add_argument("mirror", type=Path, help="root of the hub mirror")
    vision.add_argument("--id", help="hub id of the model to replace (default: that of ViT-B/16)")
    vision.add_argument("--seed", type=int, default=0, help="of the weights")
    vision.set_defaults(write=_vision)

    paper = kinds.add_parser("paper", help="all models and data sets of the paper's scale, for the scale paper-dry")
    paper.add_argument("mirror", type=Path, help="root of the hub mirror")
    paper.add_argument("--seed", type=int, default=0, help="of the weights and the data")
    paper.set_defaults(write=_paper)

    gguf = kinds.add_parser("gguf", help="a real language model from a GGUF file, for machines without the hub")
    gguf.add_argument("mirror", type=Path, help="root of the hub mirror")
    gguf.add_argument("file", type=Path, help="a .gguf file, or a wheel that contains one")
    gguf.add_argument("--id", required=True, help="hub id of the model for which it stands")
    gguf.set_defaults(write=_gguf)

    options = parser.parse_args(arguments)
    try:
        for folder in options.write(options):
            print(f"wrote {folder}")
    except EtherError as error:
        sys.exit(f"\n{error}\n")


if __name__ == "__main__":
    main()
