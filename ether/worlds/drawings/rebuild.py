"""Make the shipped drawings again from the two npm packages that hold the originals.

The packages' archives are checked against pinned SHA-512 sums before anything is read from them. Only PNG, WebP and JSON
members are read, into memory; nothing is unpacked to disk.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ether.errors import MissingResourceError
from ether.results import atomic, write_text
from ether.worlds.drawings import ARTISTS, COLUMNS, INDEX, SIDE

__all__ = ["PACKAGES", "rebuild"]

PACKAGES = {  # artist: name, version and SHA-512 of the archive (npm's `integrity`)
    "noto": (
        "emoji-datasource-google",
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "fluent": (
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
}
GROUP_OF = {  # Unicode's subcategories
    **dict.fromkeys(("mammal", "bird", "bug", "reptile", "marine", "amphibian"), "animal"),
    **dict.fromkeys(("fruit", "vegetable", "prepared", "sweet", "asian"), "food"),
    **dict.fromkeys(("flower", "other"), "plant"),
    **dict.fromkeys(("ground", "air", "water"), "vehicle"),
}
OTHERS = ("drink", "musical-instrument", "tool", "household", "light & video", "sport", "dishware", "game", "office", "science")
PLAIN_NAMES = {  # Unicode's name: the word that captions use
    "lady beetle": "ladybug", "honeybee": "bee", "red apple": "apple", "evergreen tree": "fir", "palm tree": "palm",
    "automobile": "car", "top hat": "hat", "school satchel": "backpack", "billed cap": "cap", "soccer ball": "ball",
    "baby chick": "chick", "doughnut": "donut", "maple leaf": "leaf", "aubergine": "eggplant", "black cat": "kitten",
    "rabbit": "hare", "tiger": "tigress", "pig": "piglet",
}  # fmt: skip
VISIBLE = 16  # smallest alpha that counts as visible when a drawing is cropped


def _group(subcategory: str) -> str | None:
    kind, _, part = subcategory.partition("-")
    if kind in ("animal", "food", "plant", "transport") and part in GROUP_OF:
        return GROUP_OF[part]
    if subcategory == "clothing":
        return "clothing"
    return "object" if subcategory in OTHERS else None


def _archive(artist: str, packages: Path) -> tarfile.TarFile:
    name, version, integrity = PACKAGES[artist]
    file = Path(packages) / f"{name.replace('@', '').replace('/', '-')}-{version}.tgz"
    if not file.is_file():
        raise MissingResourceError(f"There is no file {file}. Run `npm pack {name}@{version}` in {packages}.")
    content = file.read_bytes()
    actual = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if actual != integrity:
        raise MissingResourceError(
            f"The archive of {name} {version} has SHA-512 {actual}, but {integrity} is expected: it is damaged or was changed."
        )
    return tarfile.open(fileobj=io.BytesIO(content))


def _tile(content: bytes) -> Image.Image:
    """A drawing cropped to what is visible, centred in a square and reduced to a tile."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 if alpha > VISIBLE else 0).getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.size[0]) // 2, (side - image.size[1]) // 2))
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def rebuild(folder: Path, packages: Path) -> None:
    """Write ``drawings.json``, ``noto.png`` and ``fluent.png``.

    Args:
        folder: output folder.
        packages: a folder with the two archives, as `npm pack` writes them.

    Raises:
        MissingResourceError: an archive is missing or is not the expected one.
    """
    archives = {artist: _archive(artist, packages) for artist in ARTISTS}
    members = {artist: set(archives[artist].getnames()) for artist in ARTISTS}

    def read(artist: str, name: str) -> bytes:
        file = archives[artist].extractfile(name)
        assert file is not None
        return file.read()

    drawings: list[dict[str, str]] = []
    sources: list[dict[str, str]] = []
    for line in json.loads(read("noto", "package/emoji.json")):
        group = _group(line["subcategory"])
        noto = f"package/img/google/64/{line['image']}"
        codes = (line["unified"].lower(), line["unified"].lower().replace("-fe0f", ""))
        fluent = next((f for code in codes if (f := f"package/assets/{code}.webp") in members["fluent"]), None)
        full = line["name"].lower().split(",")[0].strip()
        name = PLAIN_NAMES.get(full, full.removesuffix(" face"))
        plain = len(full.split()) <= 2 and all(c.isalpha() or c == " " for c in full)
        if group and plain and fluent and noto in members["noto"]:
            if name in (entry["name"] for entry in drawings):
                name = full  # "cat" and "cat face"
            if name not in (entry["name"] for entry in drawings):
                drawings.append({"name": name, "group": group, "code": line["unified"].lower()})
                sources.append({"noto": noto, "fluent": fluent})
    rows = -(-len(drawings) // COLUMNS)
    for artist in ARTISTS:
        sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
        for i, source in enumerate(sources):
            sheet.paste(_tile(read(artist, source[artist])), (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
        pixels = np.asarray(sheet).copy()
        pixels[pixels[..., 3] == 0] = 0  # invisible pixels have no colour
        with atomic(Path(folder) / f"{artist}.png") as partial:
            Image.fromarray(pixels).save(partial, format="PNG", optimize=True)
    content = {"packages": {artist: f"{name} {version}" for artist, (name, version, _) in PACKAGES.items()}, "drawings": drawings}
    write_text(json.dumps(content, indent=0) + "\n", Path(folder) / INDEX)
