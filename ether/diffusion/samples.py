"""Saved samples: one PNG for each image, a contact sheet of all of them, and ``samples.json`` with the prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ether.diffusion.dataset import Prompt
from ether.results import atomic, write_text

SIDE = 96  # minimum width of an image in a contact sheet, in pixels


def save_picture(picture: torch.Tensor, file: Path) -> None:
    """Writes an image (3, H, W), uint8, as PNG."""
    with atomic(file) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary, format="PNG")


def contact_sheet(pictures: torch.Tensor, labels: Sequence[str], columns: int) -> Image.Image:
    """Images (N, 3, H, W), uint8, in labelled rows of `columns` images, enlarged to a side of at least `SIDE` pixels."""
    side = pictures.shape[-1] * max(1, math.ceil(SIDE / pictures.shape[-1]))
    gap, text = 4, 18
    rows = math.ceil(len(pictures) / columns)
    width = columns * (side + gap) + gap
    sheet = Image.new("RGB", (width, rows * (side + gap + text) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top = gap + row * (side + gap + text)
        if column == 0 and row < len(labels):
            pen.text((gap, top + 2), labels[row], fill="black")
        enlarged = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (gap + column * (side + gap), top + text))
    return sheet


def save_controlled(
    folder: Path,
    pictures: torch.Tensor,
    hints: torch.Tensor,
    real: torch.Tensor,
    texts: Sequence[str],
    run_info: Mapping[str, Any],
) -> None:
    """Writes each hint, real image and generated image, all (N, 3, H, W), uint8, a contact sheet of the three columns, and then
    ``samples.json``, whose images have the keys ``file``, ``hint``, ``real``, ``prompt`` and ``half`` (report).

    Args:
        folder: output folder.
        pictures, hints, real: the images.
        texts: N prompts.
        run_info: further entries of ``samples.json``.
    """
    files = []
    for number, (text, *shown) in enumerate(zip(texts, pictures, hints, real, strict=True)):
        names = {kind: f"{number:02d}{ending}.png" for kind, ending in (("file", ""), ("hint", "-hint"), ("real", "-real"))}
        files.append({**names, "prompt": text, "half": "report"})
        for name, picture in zip(names.values(), shown, strict=True):
            save_picture(picture, folder / name)
    rows = torch.stack([hints, real, pictures], dim=1).flatten(0, 1)
    with atomic(folder / "sheet.png") as temporary:
        contact_sheet(rows, texts, 3).save(temporary, format="PNG")
    write_text(json.dumps({**run_info, "images": files}, indent=2) + "\n", folder / "samples.json")


def save_samples(folder: Path, pictures: torch.Tensor, prompts: Sequence[Prompt], each: int, run_info: Mapping[str, Any]) -> None:
    """Writes one PNG for each image (N, 3, H, W), uint8, the contact sheet, and then ``samples.json``.

    Args:
        folder: output folder.
        pictures: `each` images for every prompt, in the order of the prompts.
        prompts: prompts of the subject.
        each: number of images per prompt.
        run_info: further entries of ``samples.json``.
    """
    files = []
    for number, picture in enumerate(pictures):
        prompt = prompts[number // each]
        files.append({"file": f"{prompt.number:02d}-{number % each}.png", "prompt": prompt.text, "half": prompt.half})
        save_picture(picture, folder / files[-1]["file"])
    with atomic(folder / "sheet.png") as temporary:
        contact_sheet(pictures, [prompt.text for prompt in prompts], each).save(temporary, format="PNG")
    write_text(json.dumps({**run_info, "images": files}, indent=2) + "\n", folder / "samples.json")
