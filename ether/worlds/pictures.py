"""A world of captioned pictures of named things, and subjects for DreamBooth.

**Scenes.** 64 x 64 RGB pictures of one thing, sometimes two, before one of ten backgrounds: five colours, grass, sand, a brick
wall, water and a wooden floor. The things are the drawings of `NAMES` by one artist (Noto, `ether.worlds.drawings`), some of
them recoloured ("a blue teapot"), and drawn faces (`ether.worlds.faces`). Things lie on a grid of 8 pixels with a side of 48 or
40 pixels, two things with 32. Captions are plain English and sometimes omit the background: ``a photo of a penguin on the
sand``, ``on the grass, a green bus``, ``a fox and a tulip in front of a brick wall``.

**Held out.** Of the pairs of name and background, one in ten (`held_out`) never occurs in training; every name and every
background does. Captions of these test whether a model can compose.

**The subjects.** `SUBJECTS` are other drawings of ten of the names: those of the second artist (Fluent), which no model of this
project was trained on. `write` renders each five times (with different place, size and background, one of them mirrored and
some slightly rotated) in the layout of google/dreambooth, with its prompt file:

    <root>/datasets/world/dreambooth/dataset/<subject>/00.png ...
    <root>/datasets/world/dreambooth/dataset/prompts_and_classes.txt
    <root>/datasets/world/dreambooth/dataset/metadata.json

``metadata.json`` describes each picture and what each prompt requires, and assigns every prompt to one of two halves:
``selection`` (for choosing among checkpoints and learning rates) and ``report``. No prompt asks for a background of the
photographs.

Coordinates are pixels, x to the right and y downwards; colours are RGB in 0 ... 255.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ether.errors import ConfigurationError
from ether.results import atomic, write_text
from ether.worlds import drawings
from ether.worlds.faces import Face, draw_face, random_face

__all__ = [
    "BACKGROUNDS", "COLOURS", "FACE", "NAMES", "PROMPTS", "SIZE", "SPARE_TOKENS", "SUBJECTS", "Scene", "Subject", "Thing",
    "alone", "caption", "corpus", "coverage", "describe", "files", "group", "held_out", "held_out_scenes", "photographs",
    "random_face", "random_scenes", "recolour", "render", "render_many", "vocabulary", "write",
]  # fmt: skip

SIZE, STEP = 64, 8  # side of a picture and of the grid of places, in pixels
SIDES, PAIR_SIDE = (48, 40), 32  # of a thing alone, and of two things

RGB = tuple[int, int, int]
Picture = NDArray[np.uint8]

NAMES = (  # one word each
    "octopus", "crab", "penguin", "rabbit", "whale", "turtle", "snail", "ladybug", "butterfly", "owl", "frog", "tiger", "panda",
    "fox", "pig", "chick", "elephant", "bee",
    "hamburger", "croissant", "pretzel", "donut", "cookie", "cupcake", "tomato", "lemon", "banana", "pineapple", "apple", "pear",
    "strawberry", "watermelon", "carrot", "broccoli",
    "tulip", "sunflower", "rose", "cactus", "fir", "palm", "mushroom", "leaf",
    "bus", "taxi", "car", "rocket", "sailboat", "airplane", "tractor", "helicopter",
    "crown", "hat", "dress", "jeans", "handbag", "backpack", "cap",
    "hammer", "bucket", "teapot", "guitar", "ball", "chair", "camera", "television",
)  # fmt: skip
FACE = "face"  # the name of the drawn faces
COLOURS: dict[str, RGB] = {  # of recoloured things
    "red": (222, 44, 44),
    "yellow": (246, 206, 40),
    "green": (52, 168, 72),
    "blue": (44, 98, 226),
    "purple": (150, 62, 186),
}
BACKGROUNDS: dict[str, str] = {  # and the phrase for each
    "white": "on a white background",
    "gray": "on a gray background",
    "black": "on a black background",
    "pink": "on a pink background",
    "blue": "on a blue background",
    "grass": "on the grass",
    "sand": "on the sand",
    "brick": "in front of a brick wall",
    "water": "on the water",
    "wood": "on a wooden floor",
}
PLAIN: dict[str, RGB] = {
    "white": (246, 246, 244),
    "gray": (142, 142, 148),
    "black": (28, 28, 34),
    "pink": (250, 168, 192),
    "blue": (126, 186, 246),
}
SPARE_TOKENS = ("qwe", "sks", "zwx", "olis", "vtk", "pjm", "ruj", "hta")  # in no caption; used as identifiers of subjects

PAIRS, FACES, RECOLOURED = 0.12, 0.05, 0.2  # shares: of scenes; of the other scenes; of the remaining things
NO_BACKGROUND = 0.1  # share of captions that do not mention it


@dataclass(frozen=True)
class Thing:
    """A drawing in a scene: `x` and `y` are the upper left corner of its square."""

    name: str
    x: int
    y: int
    side: int
    artist: str = "noto"
    colour: str | None = None  # a key of `COLOURS`
    face: Face | None = None
    mirrored: bool = False
    angle: float = 0.0  # degrees, counter-clockwise


@dataclass(frozen=True)
class Scene:
    """One or two things before a background; `shift` moves the background's texture."""

    things: tuple[Thing, ...]
    background: str
    shift: tuple[int, int]


# --- rendering --------------------------------------------------------------------------------------------------------


def recolour(pixels: NDArray[np.uint8], colour: RGB) -> NDArray[np.uint8]:
    """An RGBA drawing in shades of one colour: black and white stay, and what lies between takes the colour."""
    light = (pixels[..., :3] @ np.asarray((0.3, 0.59, 0.11), np.float32))[..., None] / 255
    light = np.clip(0.12 + 0.88 * light, 0, 1)
    tone = np.asarray(colour, np.float32)
    shade = np.where(light < 0.6, tone * light / 0.6, tone + (255 - tone) * (light - 0.6) / 0.4)
    return np.concatenate([np.clip(np.round(shade), 0, 255).astype(np.uint8), pixels[..., 3:]], axis=-1)


@functools.lru_cache(2048)
def _drawn(thing: Thing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colours (side, side, 3) and opacity (side, side, 1) of a thing; its place is not used."""
    from PIL import Image

    if thing.face:
        pixels = draw_face(thing.face, thing.side)
    else:
        tile = drawings.drawing(thing.artist, thing.name)
        if thing.colour:
            tile = recolour(tile, COLOURS[thing.colour])
        image = Image.fromarray(tile).convert("RGBa")  # premultiplied, so that invisible pixels do not bleed into edges
        image = image.resize((thing.side, thing.side), Image.Resampling.LANCZOS)
        if thing.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if thing.angle:
            image = image.rotate(thing.angle, Image.Resampling.BICUBIC)
        pixels = np.asarray(image.convert("RGBA"))
    return pixels[..., :3].astype(np.float32), pixels[..., 3:].astype(np.float32) / np.float32(255)


@functools.cache
def _texture(name: str) -> NDArray[np.float32]:
    """A background of (64, 64, 3) that continues at its opposite edges."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    noise = np.tile(np.random.default_rng(len(name)).normal(size=(32, 32)).astype(np.float32), (2, 2))
    turn = np.float32(2 * np.pi / 16)
    if name in PLAIN:
        return np.broadcast_to(np.asarray(PLAIN[name], np.float32), (SIZE, SIZE, 3))
    if name == "grass":  # blades: noise smeared vertically
        blades = np.sum([np.roll(noise, k, axis=0) for k in range(7)], axis=0) / 2.6
        return np.asarray((72, 132, 48), np.float32) + blades[..., None] * np.asarray((13, 18, 9), np.float32)
    if name == "sand":
        ripple = np.sin((y + 3 * np.sin(x * turn)) * turn) * 8 + np.roll(noise, 1, 1) * 2 + noise * 2
        return np.asarray((226, 198, 142), np.float32) + ripple[..., None]
    if name == "brick":
        joint = (y % 8 < 2) | ((x + 8 * (y // 8 % 2)) % 16 < 2)
        bricks = np.asarray((162, 78, 60), np.float32) + (noise * 3)[..., None]
        return np.where(joint[..., None], np.asarray((206, 196, 186), np.float32), bricks)
    if name == "water":
        waves = np.sin((y + 3 * np.sin(x * turn)) * 2 * turn)
        return np.asarray((38, 118, 168), np.float32) + waves[..., None] * np.asarray((16, 26, 26), np.float32)
    gap = y % 16 < 2  # planks of wood
    streaks = np.sum([np.roll(noise, k, axis=1) for k in range(10)], axis=0) / 3.2
    planks = np.asarray((166, 118, 72), np.float32) + (streaks * 7)[..., None]
    return np.where(gap[..., None], np.asarray((92, 60, 34), np.float32), planks)


def render(scene: Scene) -> Picture:
    """The picture of a scene, (64, 64, 3)."""
    picture = np.roll(_texture(scene.background), scene.shift, axis=(0, 1)).copy()
    for thing in scene.things:
        colours, opacity = _drawn(dataclasses.replace(thing, x=0, y=0))
        part = picture[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
        part += opacity * (colours - part)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def render_many(scenes: Sequence[Scene]) -> Picture:
    """Pictures of scenes, (scenes, 64, 64, 3)."""
    return np.stack([render(scene) for scene in scenes])


def coverage(scene: Scene) -> NDArray[np.int64]:
    """Which thing covers a pixel by more than half, (64, 64): 0 for the background, 1 and 2 for the things in their order."""
    found = np.zeros((SIZE, SIZE), np.int64)
    for i, thing in enumerate(scene.things):
        opacity = _drawn(dataclasses.replace(thing, x=0, y=0))[1][..., 0]
        found[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side][opacity > 0.5] = i + 1
    return found


# --- scenes -----------------------------------------------------------------------------------------------------------


def group(name: str) -> str:
    """What a named thing is: one of `ether.worlds.drawings.GROUPS`, or ``face``."""
    return FACE if name == FACE else drawings.entry(name).group


@functools.cache
def held_out() -> frozenset[tuple[str, str]]:
    """The pairs of name and background that never occur in training: one background for each name."""
    names = tuple(BACKGROUNDS)
    return frozenset((name, names[i * 3 % len(names)]) for i, name in enumerate(NAMES))


def _pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _shift(rng: np.random.Generator) -> tuple[int, int]:
    down, right = (int(s) * STEP for s in rng.integers(0, SIZE // STEP, 2))
    return down, right


def alone(name: str, background: str, rng: np.random.Generator, **details: Any) -> Scene:
    """A scene of one thing at a random place; `details` are further fields of `Thing`."""
    side = _pick(rng, SIDES)
    x, y = (int(_pick(rng, range(0, SIZE - side + 1, STEP))) for _ in range(2))
    return Scene((Thing(name, x, y, side, **details),), background, _shift(rng))


def together(names: Sequence[str], background: str, rng: np.random.Generator) -> Scene:
    """A scene of two things side by side."""
    heights = [int(_pick(rng, range(0, SIZE - PAIR_SIDE + 1, STEP))) for _ in names]
    things = [Thing(name, i * PAIR_SIDE, y, PAIR_SIDE) for i, (name, y) in enumerate(zip(names, heights, strict=True))]
    return Scene(tuple(things), background, _shift(rng))


def random_scenes(seed: int, names: Sequence[str] = NAMES) -> Iterator[Scene]:
    """An endless stream of scenes of the training distribution."""
    rng, backgrounds = np.random.default_rng([seed, 1]), tuple(BACKGROUNDS)
    while True:
        background = _pick(rng, backgrounds)
        if rng.random() < PAIRS:
            pair = [names[int(i)] for i in rng.choice(len(names), 2, replace=False)]
            if not any((name, background) in held_out() for name in pair):
                yield together(pair, background, rng)
        elif rng.random() < FACES:
            yield alone(FACE, background, rng, face=random_face(rng))
        else:
            name, colour = _pick(rng, names), _pick(rng, tuple(COLOURS)) if rng.random() < RECOLOURED else None
            if (name, background) not in held_out():
                yield alone(name, background, rng, colour=colour)


def held_out_scenes(seed: int, count: int, coloured: bool = False) -> list[Scene]:
    """Scenes of held-out pairs of name and background, each pair approximately equally often."""
    rng, pairs = np.random.default_rng([seed, 2]), sorted(held_out())
    order = rng.permutation(max(count, len(pairs))) % len(pairs)
    colours = tuple(COLOURS)
    return [alone(*pairs[int(order[i])], rng, colour=colours[i % len(colours)] if coloured else None) for i in range(count)]


def corpus(seed: int, count: int) -> tuple[Picture, list[str], list[Scene]]:
    """`count` training examples: pictures (count, 64, 64, 3), captions and scenes."""
    stream, rng = random_scenes(seed), np.random.default_rng([seed, 3])
    scenes = [next(stream) for _ in range(count)]
    return render_many(scenes), [caption(scene, rng) for scene in scenes], scenes


# --- captions ---------------------------------------------------------------------------------------------------------


def article(words: str) -> str:
    """Words with ``a`` or ``an`` before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _things(scene: Scene) -> str:
    return " and ".join(article(" ".join(filter(None, (thing.colour, thing.name)))) for thing in scene.things)


def describe(scene: Scene) -> str:
    """The full caption in its plainest form: ``a photo of a blue teapot on the grass``."""
    return f"a photo of {_things(scene)} {BACKGROUNDS[scene.background]}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A random caption; some do not mention the background."""
    things, where = _things(scene), BACKGROUNDS[scene.background]
    opening = "a photo of " if rng.random() < 0.5 else ""
    if rng.random() < NO_BACKGROUND:
        return opening + things
    return f"{where}, {things}" if rng.random() < 0.2 else f"{opening}{things} {where}"


def vocabulary() -> list[str]:
    """Every word of the captions and the spare tokens, sorted."""
    words = {word for phrase in (*BACKGROUNDS.values(), "a photo of an and") for word in phrase.split()}
    return sorted(words | {*COLOURS, *NAMES, FACE, *SPARE_TOKENS})


# --- subjects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A particular thing for subject-driven generation: another artist's drawing of a name that the model knows."""

    noun: str
    artist: str = "fluent"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.artist}_{self.noun}"


SUBJECTS = tuple(
    Subject(noun)
    for noun in ("octopus", "penguin", "mushroom", "cupcake", "rocket", "helicopter", "hat", "ball", "crab", "teapot")
)
PHOTOGRAPHED = (("white", 0, False), ("wood", 6, False), ("gray", -8, False), ("sand", 0, True), ("black", 8, False))
# background, rotation in degrees, mirrored
PROMPTS: tuple[tuple[str, Mapping[str, str]], ...] = (  # {0}: token, {1}: class; and what it requires
    *(
        (form.format(BACKGROUNDS[name]), {"background": name})
        for form in ("a photo of a {{0}} {{1}} {0}", "a {{0}} {{1}} {0}")
        for name in ("grass", "blue", "brick", "pink", "water")
    ),
    ("a photo of a blue {0} {1} on the grass", {"background": "grass", "colour": "blue"}),
    ("a photo of a green {0} {1} on a pink background", {"background": "pink", "colour": "green"}),
)

IMAGES = len(PHOTOGRAPHED)  # pictures of each subject, unless the settings contain another number
METADATA, PROMPT_FILE = "metadata.json", "prompts_and_classes.txt"


def _prompt_file(subjects: Sequence[Subject]) -> str:
    """The prompt file in the format of google/dreambooth; its two lists are the same here."""
    classes = "\n".join(f"{subject.name},{subject.noun}" for subject in subjects)
    prompts = ",\n".join(f"'{template}'.format(unique_token, class_token)" for template, _ in PROMPTS)
    block = f"prompt_list = [\n{prompts}\n]\n"
    return f"Classes\n\nsubject_name,class\n{classes}\n\nPrompts\n\nObject Prompts\n\n{block}\nLive Subject Prompts\n\n{block}"


def photographs(subject: Subject, seed: int, count: int) -> list[Scene]:
    """`count` scenes of a subject: the backgrounds, rotations and the mirrored one are fixed, place and size are random."""
    rng = np.random.default_rng([seed, 4, *subject.name.encode()])
    kinds = [PHOTOGRAPHED[i % len(PHOTOGRAPHED)] for i in range(count)]
    return [
        alone(subject.noun, background, rng, artist=subject.artist, angle=angle, mirrored=mirrored)
        for background, angle, mirrored in kinds
    ]


def _folder() -> Path:
    return Path("datasets") / "world" / "dreambooth" / "dataset"


def _image_name(index: int) -> str:
    return f"{index:02d}.png"


def files(settings: Mapping[str, Any]) -> list[str]:
    """The paths, relative to the folder given to `write`, of all files that it writes with these settings."""
    images, subjects = settings.get("images", IMAGES), settings.get("subjects", len(SUBJECTS))
    pictures = [_folder() / subject.name / _image_name(i) for subject in SUBJECTS[:subjects] for i in range(images)]
    return [path.as_posix() for path in (*pictures, _folder() / METADATA, _folder() / PROMPT_FILE)]


def write(folder: Path, *, seed: int = 0, images: int = IMAGES, subjects: int = len(SUBJECTS)) -> None:
    """Write pictures of subjects as a hub mirror (for the layout, see the docstring of the module).

    The same settings give the same bytes.

    Args:
        folder: root of the mirror.
        seed: of places and sizes.
        images: pictures of each subject.
        subjects: how many of `SUBJECTS`, from the first.

    Raises:
        ConfigurationError: a number is out of range.
    """
    from PIL import Image  # only writing needs it

    if not 1 <= subjects <= len(SUBJECTS) or not 1 <= images <= 100:
        raise ConfigurationError(
            f"The world of pictures has 1 to {len(SUBJECTS)} subjects with 1 to 100 images each, but the settings request "
            f"{subjects} subjects with {images} images. Change `world.pictures` of the scale."
        )
    target = Path(folder) / _folder()
    chosen, described = SUBJECTS[:subjects], {}
    for subject in chosen:
        scenes = photographs(subject, seed, images)
        for i, scene in enumerate(scenes):
            with atomic(target / subject.name / _image_name(i)) as partial:
                Image.fromarray(render(scene)).save(partial, format="PNG")
        described[subject.name] = {
            "class": subject.noun,
            "artist": subject.artist,
            "images": [
                {"file": _image_name(i), "background": scene.background}
                | {key: getattr(scene.things[0], key) for key in ("x", "y", "side", "angle", "mirrored")}
                for i, scene in enumerate(scenes)
            ],
        }
    prompts = [
        {"index": i, "template": template, "split": ("selection", "report")[i % 2], **required}
        for i, (template, required) in enumerate(PROMPTS)
    ]
    content = {"seed": seed, "subjects": described, "prompts": prompts, "spare_tokens": SPARE_TOKENS}
    write_text(json.dumps(content, indent=2) + "\n", target / METADATA)
    write_text(_prompt_file(chosen), target / PROMPT_FILE)  # last: with it the folder is complete
