"""A world of small captioned pictures, and subjects for DreamBooth that no caption can describe exactly.

**The scenes.** 32 x 32 RGB pictures of one object, at any position and with a diameter between 17 and 25 pixels, before one of
ten backgrounds: five colours, grass, sand, a brick wall, water and a wooden floor. The object is one of six shapes (circle,
square, triangle, star, cross, heart) in one of six colours and five textures (plain, striped, spotted, checkered,
outlined), or a *thing*: a vase, a toy or a fish with a random silhouette and a pattern of any two colours. Captions are plain
English in many forms and sometimes omit an attribute: ``a photo of a striped red circle on a blue background``,
``on the beach, a heart with spots``, ``a fish floating on water``.

**Held out.** Of the 180 combinations of colour, shape and texture, 30 (`held_out`) never occur in training; every pair
of attributes does. Captions of these test whether a model can compose attributes.

**The subjects.** `SUBJECTS` are eight particular things of the classes vase, toy and fish: a silhouette, a pattern
and two colours without a name. `write` renders each five times (with different position, size and background) in the layout
of google/dreambooth, with its prompt file:

    <root>/datasets/world/dreambooth/dataset/<subject>/00.png ...
    <root>/datasets/world/dreambooth/dataset/prompts_and_classes.txt
    <root>/datasets/world/dreambooth/dataset/metadata.json

``metadata.json`` describes each picture and the attribute that each prompt requires, and assigns every prompt to one of two
halves: ``selection`` (for choosing among checkpoints) and ``report``.

Coordinates are pixels, x to the right and y downwards; colours are RGB in 0 ... 255.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ether.errors import ConfigurationError
from ether.results import atomic, write_text

__all__ = [
    "BACKGROUNDS", "COLOURS", "KINDS", "PROMPTS", "SHAPES", "SIZE", "SPARE_TOKENS", "SUBJECTS", "TEXTURES", "THINGS",
    "Look", "Scene", "Subject", "caption", "corpus", "describe", "files", "held_out", "held_out_scenes", "place",
    "random_look", "references", "render", "render_many", "scenes", "vocabulary", "write",
]  # fmt: skip

SIZE = 32  # side of a picture, in pixels
FINE = 3  # sub-pixels along a side of a pixel, so that edges are smooth

RGB = tuple[int, int, int]
Picture = NDArray[np.uint8]

COLOURS: dict[str, RGB] = {
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 50),
    "green": (40, 185, 75),
    "blue": (40, 70, 215),
    "purple": (140, 55, 175),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
THINGS = ("vase", "toy", "fish")
KINDS = (*SHAPES, *THINGS)
TEXTURES = {  # and the phrase for it after the noun
    "plain": "",
    "striped": "with stripes",
    "spotted": "with spots",
    "checkered": "with checks",
    "outlined": "with an outline",
}
PATTERNS = (*TEXTURES, "halved")  # "halved" is for things only and has no word in captions
INKS: tuple[RGB, RGB] = ((32, 30, 36), (248, 246, 242))  # the second colour of a shape: dark or light
BACKGROUNDS: dict[str, tuple[str, ...]] = {  # and the phrases for it
    "white": ("on a white background", "with a white background"),
    "gray": ("on a gray background", "with a gray background"),
    "black": ("on a black background", "with a black background"),
    "pink": ("on a pink background", "with a pink background"),
    "blue": ("on a blue background", "with a blue background"),
    "grass": ("on the grass", "on green grass"),
    "sand": ("on the sand", "on the beach"),
    "brick": ("in front of a brick wall", "against a brick wall"),
    "water": ("on the water", "floating on water"),
    "wood": ("on a wooden floor", "on top of a wooden floor"),
}
PLAIN: dict[str, RGB] = {
    "white": (246, 246, 244),
    "gray": (142, 142, 148),
    "black": (28, 28, 34),
    "pink": (250, 168, 192),
    "blue": (126, 186, 246),
}
SPARE_TOKENS = ("qwe", "sks", "zwx", "olis", "vtk", "pjm", "ruj", "hta")  # without meaning; used as names of subjects


@dataclass(frozen=True)
class Look:
    """The appearance of an object, independent of its position. `silhouette` holds parameters of a thing in 0 ... 1."""

    kind: str  # one of `KINDS`
    pattern: str  # one of `PATTERNS`
    colours: tuple[RGB, RGB]  # main, second
    silhouette: tuple[float, ...] = ()
    frequency: float = 2.2  # of the pattern, in repeats per radius
    angle: float = 0.0  # of the pattern, in radians


@dataclass(frozen=True)
class Scene:
    """An object at a position before a background; `colour` is the name of its main colour, None if it has none."""

    look: Look
    background: str
    x: float  # centre, in pixels
    y: float
    radius: float  # in pixels
    seed: int  # of the background's details
    colour: str | None = None

    @property
    def texture(self) -> str | None:
        """The texture's name; None for a pattern that captions have no word for."""
        return self.look.pattern if self.look.pattern in TEXTURES else None


# --- rendering --------------------------------------------------------------------------------------------------------


@functools.cache
def _grid() -> tuple[NDArray[Any], NDArray[Any]]:
    """Pixel coordinates of the sub-pixels' centres, x of shape (1, 96) and y of shape (96, 1)."""
    centres = (np.arange(SIZE * FINE, dtype=np.float32) + 0.5) / FINE
    return centres[None, :], centres[:, None]


def _polygon(u: NDArray[Any], v: NDArray[Any], corners: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """Whether points are inside a polygon, by counting the edges to their right."""
    inside = np.zeros(np.broadcast(u, v).shape, dtype=bool)
    for (a, b), (c, d) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if b != d:
            inside ^= ((b > v) != (d > v)) & (u < (c - a) * (v - b) / (d - b) + a)
    return inside


STAR = [
    (float(radius * np.sin(np.pi * i / 5)), float(0.06 - radius * np.cos(np.pi * i / 5)))
    for i, radius in enumerate((1.06, 0.47) * 5)
]


def _shape(kind: str, u: NDArray[Any], v: NDArray[Any]) -> NDArray[np.bool_]:
    if kind == "circle":
        return u * u + v * v < 0.94
    if kind == "square":
        return (abs(u) < 0.84) & (abs(v) < 0.84)
    if kind == "triangle":
        return (v < 0.82) & (v > -0.95) & (abs(u) < (v + 0.95) * 0.56)
    if kind == "star":
        return _polygon(u, v, STAR)
    if kind == "cross":
        return ((abs(u) < 0.36) & (abs(v) < 0.96)) | ((abs(v) < 0.36) & (abs(u) < 0.96))
    x, y = u * 1.15, 0.12 - v * 1.15
    return (x * x + y * y - 0.72) ** 3 < x * x * y**3 * 1.7  # heart


def _thing(look: Look, u: NDArray[Any], v: NDArray[Any]) -> NDArray[np.bool_]:
    s = look.silhouette
    if look.kind == "vase":  # half its width at five heights
        heights = (-0.97, -0.6, -0.1, 0.45, 0.97)
        widths = (0.25 + 0.45 * s[0], 0.14 + 0.4 * s[1], 0.3 + 0.6 * s[2], 0.3 + 0.65 * s[3], 0.2 + 0.4 * s[4])
        return (abs(v) < 0.97) & (abs(u) < np.interp(v, heights, widths))
    if look.kind == "toy":  # a body, a head, two ears and two feet
        head, body = 0.3 + 0.17 * s[0], 0.36 + 0.3 * s[1]
        ear, apart = 0.1 + 0.17 * s[2], 0.2 + 0.25 * s[3]
        tall, foot = 1.0 + 1.1 * s[4], 0.16 + 0.16 * s[5]
        side = abs(u)
        return (
            (u**2 + (v + 0.4) ** 2 < head**2)
            | ((u / body) ** 2 + ((v - 0.38) / 0.5) ** 2 < 1)
            | ((side - apart) ** 2 + ((v + 0.64) / tall) ** 2 < ear**2)
            | ((side - 0.38) ** 2 + (v - 0.82) ** 2 < foot**2)
        )
    belly, tail, fin = 0.35 + 0.4 * s[0], 0.35 + 0.5 * s[1], 0.25 + 0.6 * s[2]  # a fish, looking left
    long = 0.62 + 0.16 * s[3]
    return (
        (((u + 0.97 - long) / long) ** 2 + (v / belly) ** 2 < 1)
        | ((u > 0.2) & (u < 0.97) & (abs(v) < tail * (u - 0.2) / 0.77 + 0.06))
        | ((abs(u + 0.2) < 0.34) & (v < 0) & (v > -belly - fin * (0.34 + (u + 0.2)) * 0.8))
    )


def _inside(look: Look, u: NDArray[Any], v: NDArray[Any]) -> NDArray[np.bool_]:
    return _shape(look.kind, u, v) if look.kind in SHAPES else _thing(look, u, v)


def _second_colour(look: Look, u: NDArray[Any], v: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the pattern has the second colour."""
    if look.pattern == "outlined":
        return ~_inside(look, u * 1.45, v * 1.45)
    cos, sin = np.cos(look.angle), np.sin(look.angle)
    a, b = (u * cos + v * sin) * look.frequency, (v * cos - u * sin) * look.frequency
    if look.pattern == "striped":
        return (np.floor(b + 0.5).astype(int) + 0 * a.astype(int)) % 2 == 1
    if look.pattern == "checkered":
        return (np.floor(a).astype(int) + np.floor(b).astype(int)) % 2 == 1
    if look.pattern == "spotted":
        p, q = a * 0.62, b * 0.62
        return (p - np.round(p)) ** 2 + (q - np.round(q)) ** 2 < 0.095
    if look.pattern == "halved":
        return b > 0.25
    return np.zeros(np.broadcast(u, v).shape, dtype=bool)


def _background(name: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """A background of shape (32, 32, 3)."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    noise = rng.normal(size=(SIZE, SIZE)).astype(np.float32)
    shift = rng.integers(0, 60, 2)
    if name in PLAIN:
        return np.asarray(PLAIN[name], np.float32) + np.zeros((SIZE, SIZE, 1), np.float32) + np.float32(rng.normal() * 4)
    if name == "grass":  # blades: noise smeared vertically
        blades = np.sum([np.roll(noise, k, axis=0) for k in range(5)], axis=0) / 2.2
        return np.asarray((62, 112, 40), np.float32) + blades[..., None] * np.asarray((13, 18, 9), np.float32)
    if name == "sand":
        ripple = np.sin((y + 1.5 * np.sin(x / 5 + shift[0])) * 0.9 + shift[1]) * 7 + noise * 5
        return np.asarray((226, 198, 142), np.float32) + ripple[..., None]
    if name == "brick":
        row = (y + shift[0]) // 6
        joint = ((y + shift[0]) % 6 < 1) | ((x + shift[1] + 5 * (row % 2)) % 10 < 1)
        bricks = np.asarray((162, 78, 60), np.float32) + (noise * 4)[..., None]
        return np.where(joint[..., None], np.asarray((206, 196, 186), np.float32), bricks)
    if name == "water":
        waves = np.sin((y + 1.6 * np.sin(x * 0.4 + shift[0])) * 1.05 + shift[1])
        return np.asarray((38, 118, 168), np.float32) + waves[..., None] * np.asarray((16, 26, 26), np.float32)
    gap = (y + shift[0]) % 8 < 1  # planks of wood
    streaks = np.sum([np.roll(noise, k, axis=1) for k in range(6)], axis=0) / 2.4
    planks = np.asarray((156, 108, 62), np.float32) + (streaks * 9)[..., None]
    return np.where(gap[..., None], np.asarray((92, 60, 34), np.float32), planks)


def render(scene: Scene) -> Picture:
    """The picture of a scene, of shape (32, 32, 3)."""
    x, y = _grid()
    u, v = np.broadcast_arrays((x - scene.x) / scene.radius, (y - scene.y) / scene.radius)
    inside = _inside(scene.look, u, v)
    ink = inside & _second_colour(scene.look, u, v)

    def share(fine: NDArray[np.bool_]) -> NDArray[np.float32]:
        return fine.reshape(SIZE, FINE, SIZE, FINE).mean((1, 3), dtype=np.float32)[..., None]

    covered, inked = share(inside), share(ink)
    main, second = (np.asarray(colour, np.float32) for colour in scene.look.colours)
    picture = _background(scene.background, np.random.default_rng(scene.seed)) * (1 - covered)
    picture = picture + (covered - inked) * main + inked * second
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def render_many(scenes: list[Scene]) -> Picture:
    """Pictures of scenes, of shape (scenes, 32, 32, 3)."""
    return np.stack([render(scene) for scene in scenes])


# --- scenes -----------------------------------------------------------------------------------------------------------


@functools.cache
def held_out() -> frozenset[tuple[str, str, str]]:
    """The 30 combinations (colour, shape, texture) that never occur in training; each pair of them does."""
    return frozenset(
        (colour, shape, texture)
        for c, colour in enumerate(COLOURS)
        for s, shape in enumerate(SHAPES)
        for t, texture in enumerate(TEXTURES)
        if (c + s + t) % 6 == 0
    )


def place(look: Look, background: str, rng: np.random.Generator, colour: str | None = None) -> Scene:
    """A scene with the given look at a random position and size."""
    radius = float(rng.uniform(8.8, 12.2))
    x, y = (float(rng.uniform(radius + 0.5, SIZE - radius - 0.5)) for _ in range(2))
    return Scene(look, background, x, y, radius, int(rng.integers(2**31)), colour)


def _jittered(colour: RGB, rng: np.random.Generator) -> RGB:
    r, g, b = (int(np.clip(c + rng.integers(-10, 11), 0, 255)) for c in colour)
    return r, g, b


def _ink(colour: str, background: str, rng: np.random.Generator) -> RGB:
    """A second colour that contrasts with the first one and, where possible, with the background."""
    if background in ("white", "pink", "sand"):
        return INKS[0]
    if background == "black":
        return INKS[1]
    return INKS[0] if colour in ("yellow", "orange") else INKS[int(rng.integers(2))]


def any_colour(rng: np.random.Generator) -> RGB:
    """A random colour that is neither very dull nor very dark."""
    hue, strength, value = rng.uniform(0, 6), rng.uniform(0.35, 0.95), rng.uniform(0.35, 0.98)
    channel = [value * (1 - strength * np.clip(min((n + hue) % 6, 4 - (n + hue) % 6), 0, 1)) for n in (5, 3, 1)]
    r, g, b = (round(255 * float(c)) for c in channel)
    return r, g, b


def random_look(kind: str, rng: np.random.Generator, colour: str | None = None) -> Look:
    """A random silhouette, pattern and pair of different colours; the first one has the name `colour` if that is given."""
    main = _jittered(COLOURS[colour], rng) if colour else any_colour(rng)
    second = any_colour(rng)
    while sum(abs(a - b) for a, b in zip(main, second, strict=True)) < 190:
        second = any_colour(rng)
    return Look(
        kind,
        PATTERNS[int(rng.integers(len(PATTERNS)))],
        (main, second),
        tuple(round(float(s), 3) for s in rng.uniform(0, 1, 6)),
        round(float(rng.uniform(1.8, 2.6)), 2),
        round(float(rng.uniform(-0.9, 0.9)), 2),
    )


def shape_scene(colour: str, shape: str, texture: str, background: str, rng: np.random.Generator) -> Scene:
    """A shape of a colour and texture before a background, at a random position and size."""
    look = Look(shape, texture, (_jittered(COLOURS[colour], rng), _jittered(_ink(colour, background, rng), rng)))
    return place(look, background, rng, colour)


def _pick(rng: np.random.Generator, names: Any) -> str:
    choices = tuple(names)
    return choices[int(rng.integers(len(choices)))]


def scenes(seed: int, things: float = 0.3, include_held_out: bool = False) -> Iterator[Scene]:
    """An endless stream of scenes of the training distribution.

    Args:
        seed: of the stream.
        things: share of things, the others are shapes.
        include_held_out: also generate the held-out combinations of colour, shape and texture.
    """
    rng = np.random.default_rng([seed, 1])
    while True:
        background, colour = _pick(rng, BACKGROUNDS), _pick(rng, COLOURS)
        if rng.random() < things:
            named = colour if rng.random() < 0.4 else None
            yield place(random_look(_pick(rng, THINGS), rng, named), background, rng, named)
            continue
        shape, texture = _pick(rng, SHAPES), _pick(rng, TEXTURES)
        if include_held_out or (colour, shape, texture) not in held_out():
            yield shape_scene(colour, shape, texture, background, rng)


def held_out_scenes(seed: int, count: int) -> list[Scene]:
    """Scenes of held-out combinations, each combination and background approximately equally often."""
    rng = np.random.default_rng([seed, 2])
    triples, names = sorted(held_out()), list(BACKGROUNDS)
    return [shape_scene(*triples[i % len(triples)], names[(i + i // len(triples)) % len(names)], rng) for i in range(count)]


def corpus(seed: int, count: int, include_held_out: bool = False) -> tuple[Picture, list[str], list[Scene]]:
    """`count` training examples: pictures of shape (count, 32, 32, 3), captions and scenes."""
    stream, rng = scenes(seed, include_held_out=include_held_out), np.random.default_rng([seed, 3])
    samples = [next(stream) for _ in range(count)]
    return render_many(samples), [caption(scene, rng) for scene in samples], samples


# --- captions ---------------------------------------------------------------------------------------------------------


def article(words: str) -> str:
    """Words with ``a`` or ``an`` before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(scene: Scene) -> str:
    """The full caption in its plainest form: ``a photo of a striped red circle on a blue background``."""
    words = [word for word in (scene.texture, scene.colour, scene.look.kind) if word]
    return f"a photo of {article(' '.join(words))} {BACKGROUNDS[scene.background][0]}"


def caption(scene: Scene, rng: np.random.Generator, complete: bool = False) -> str:
    """A random caption; unless it has to be `complete`, each of texture, colour and background is omitted in some captions."""
    mentioned = rng.random(3) > ((0, 0, 0) if complete else (0.12, 0.1, 0.1))
    texture = scene.texture if mentioned[0] else None
    colour = scene.colour if mentioned[1] else None
    form = rng.random()
    after = ""
    if texture and TEXTURES[texture] and form < 0.25:
        words, after = [colour], f" {TEXTURES[texture]}"
    else:
        words = [texture, colour] if form < 0.65 else [colour, texture]
    if scene.look.kind in THINGS and rng.random() < 0.15:  # so that spare tokens occur in captions
        words.append(_pick(rng, SPARE_TOKENS))
    thing = article(" ".join([*(word for word in words if word), scene.look.kind])) + after
    location = _pick(rng, BACKGROUNDS[scene.background]) if mentioned[2] else ""
    opening = ("a photo of ", "a picture of ", "")[int(rng.choice(3, p=(0.45, 0.1, 0.45)))]
    if location and rng.random() < 0.1:
        return f"{location}, {thing}"
    return f"{opening}{thing} {location}".strip()


def vocabulary() -> list[str]:
    """Every word of the captions and the spare tokens, sorted."""
    phrases = [*TEXTURES.values(), *(p for forms in BACKGROUNDS.values() for p in forms), "a photo of an picture"]
    words = {word for phrase in phrases for word in phrase.split()}
    return sorted(words | {*COLOURS, *TEXTURES, *KINDS, *SPARE_TOKENS})


# --- subjects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A particular thing, for subject-driven generation."""

    name: str
    look: Look

    @property
    def noun(self) -> str:
        """Its class, as it is used in prompts."""
        return self.look.kind


SUBJECTS = (
    Subject("slim_vase", Look("vase", "striped", ((20, 140, 140), (245, 225, 185)), (0.2, 0.1, 0.2, 0.9, 0.7, 0), 2.3, 0.5)),
    Subject("broad_vase", Look("vase", "checkered", ((150, 45, 85), (240, 200, 90)), (0.9, 0.7, 1.0, 0.3, 0.1, 0), 2.0, 0.0)),
    Subject("round_vase", Look("vase", "spotted", ((70, 80, 150), (245, 150, 140)), (0.5, 0.0, 0.9, 1.0, 0.2, 0), 2.3, 0.4)),
    Subject("bear_toy", Look("toy", "halved", ((130, 85, 60), (130, 215, 195)), (0.9, 0.9, 0.8, 0.9, 0.0, 0.8), 2.5, 0.0)),
    Subject("rabbit_toy", Look("toy", "striped", ((225, 120, 165), (80, 95, 45)), (0.3, 0.4, 0.2, 0.2, 1.0, 0.4), 2.3, -0.6)),
    Subject("mouse_toy", Look("toy", "checkered", ((60, 165, 215), (110, 35, 50)), (0.2, 0.6, 1.0, 1.0, 0.1, 0.0), 2.2, 0.7)),
    Subject("long_fish", Look("fish", "spotted", ((175, 205, 60), (95, 40, 125)), (0.1, 0.9, 0.2, 1.0, 0, 0), 2.4, 0.0)),
    Subject("tall_fish", Look("fish", "striped", ((240, 110, 80), (30, 60, 110)), (1.0, 0.3, 0.9, 0.0, 0, 0), 2.2, 1.5)),
)

PROMPTS: tuple[tuple[str, Mapping[str, str]], ...] = (  # {0}: token, {1}: class; and the attribute it requires
    *((f"a {{0}} {{1}} {phrases[0]}", {"background": name}) for name, phrases in BACKGROUNDS.items()),
    ("a red {0} {1}", {"colour": "red"}),
    ("a blue {0} {1}", {"colour": "blue"}),
)

IMAGES = 5  # pictures of each subject, unless the settings contain another number
METADATA, PROMPT_FILE = "metadata.json", "prompts_and_classes.txt"


def _prompt_file(subjects: tuple[Subject, ...]) -> str:
    """The prompt file in the format of google/dreambooth; its two lists are the same here."""
    classes = "\n".join(f"{subject.name},{subject.noun}" for subject in subjects)
    prompts = ",\n".join(f"'{template}'.format(unique_token, class_token)" for template, _ in PROMPTS)
    block = f"prompt_list = [\n{prompts}\n]\n"
    return f"Classes\n\nsubject_name,class\n{classes}\n\nPrompts\n\nObject Prompts\n\n{block}\nLive Subject Prompts\n\n{block}"


def references(subject: Subject, seed: int, count: int) -> list[Scene]:
    """`count` scenes of a subject, with different backgrounds."""
    rng = np.random.default_rng([seed, 4, *subject.name.encode()])
    order = [list(BACKGROUNDS)[i] for i in rng.permutation(len(BACKGROUNDS))]
    return [place(subject.look, order[i % len(order)], rng) for i in range(count)]


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
        seed: of positions, sizes and backgrounds.
        images: pictures of each subject.
        subjects: how many of `SUBJECTS`, from the first.

    Raises:
        ConfigurationError: a number is out of range.
    """
    from PIL import Image  # only writing needs it

    if not 1 <= subjects <= len(SUBJECTS) or not 1 <= images <= 100:
        raise ConfigurationError(
            f"The world of scenes has 1 to {len(SUBJECTS)} subjects with 1 to 100 images each, but the settings request "
            f"{subjects} subjects with {images} images. Change `world.scenes` of the scale."
        )
    target = Path(folder) / _folder()
    chosen, described = SUBJECTS[:subjects], {}
    for subject in chosen:
        samples = references(subject, seed, images)
        for i, scene in enumerate(samples):
            with atomic(target / subject.name / _image_name(i)) as partial:
                Image.fromarray(render(scene)).save(partial, format="PNG")
        described[subject.name] = {
            "class": subject.noun,
            **{key: value for key, value in dataclasses.asdict(subject.look).items() if key != "kind"},
            "images": [
                {
                    "file": _image_name(i),
                    "background": scene.background,
                    **{key: round(getattr(scene, key), 2) for key in ("x", "y", "radius")},
                }
                for i, scene in enumerate(samples)
            ],
        }
    prompts = [
        {"index": i, "template": template, "split": ("selection", "report")[i % 2], **required}
        for i, (template, required) in enumerate(PROMPTS)
    ]
    content = {"seed": seed, "subjects": described, "prompts": prompts, "spare_tokens": SPARE_TOKENS}
    write_text(json.dumps(content, indent=2) + "\n", target / METADATA)
    write_text(_prompt_file(chosen), target / PROMPT_FILE)  # last: with it the folder is complete
