"""The data set of subject-driven generation in the layout of google/dreambooth: photographs, classes and prompts.

dataset/<subject>/*.jpg             the photographs of a subject
dataset/prompts_and_classes.txt     the class of each subject, and the prompts
dataset/metadata.json               optional, written by the world of pictures: the attributes that each prompt describes
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ether import hub
from ether.errors import ConfigurationError, MissingResourceError, one_of

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
PROMPT_FILE = "prompts_and_classes.txt"
METADATA_FILE = "metadata.json"
HALVES = ("selection", "report")
ATTRIBUTES = ("background", "colour")  # keys of the metadata file: attributes that a prompt describes


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a subject."""

    number: int
    text: str  # with the subject's identifier: input of the text-to-image model
    plain: str  # without the identifier: text for CLIP-T
    half: str  # selection | report
    attributes: tuple[tuple[str, str], ...] = ()  # (attribute, value) that the prompt describes, if known

    @property
    def altered(self) -> bool:
        """Whether the prompt asks for a subject that looks different from its photographs (another colour), if known."""
        return any(attribute == "colour" for attribute, _ in self.attributes)


def read_prompt_file(text: str, where: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """google/dreambooth's ``prompts_and_classes.txt``: ({subject: class}, {"object" | "live": templates}).

    Templates contain {0} for the identifier and {1} for the class.

    Raises:
        MissingResourceError: the file contains no classes or no prompts.
    """
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object": [], "live": []}
    section = ""
    for line in text.splitlines():
        heading = line.strip().lower()
        if heading in ("classes", "object prompts", "live subject prompts"):
            section = heading
        elif section == "classes" and "," in line and heading != "subject_name,class":
            subject, noun = next(csv.reader([line]))[:2]
            classes[subject.strip()] = noun.strip()
        elif section in ("object prompts", "live subject prompts"):
            found = re.match(r"""\s*(['"])(.*\{1\}.*)\1\s*\.format""", line)
            if found:
                prompts[section.split()[0]].append(found[2])
    if not classes or not prompts["object"]:
        raise MissingResourceError(
            f"{where} names no {'prompts' if classes else 'classes'}: it must have google/dreambooth's format, with the headings "
            "'Classes', 'Object Prompts' and 'Live Subject Prompts'."
        )
    return classes, prompts


def dataset_folder(source: hub.Source, subject: str | None = None) -> Path:
    """The folder that contains the subjects' folders. From the hub, only the prompt file and one subject are downloaded.

    Raises:
        MissingResourceError: the folder does not exist, or the hub cannot be reached.
    """
    if source.folder is not None:
        folder = source.folder / "dataset"
    else:
        from huggingface_hub import snapshot_download

        patterns = [f"dataset/{PROMPT_FILE}", f"dataset/{METADATA_FILE}", *([f"dataset/{subject}/*"] if subject else [])]
        with hub.explained(source, "data set", "subject.data.path"):
            root = snapshot_download(source.name, repo_type="dataset", revision=source.revision, allow_patterns=patterns)
        folder = Path(root) / "dataset"
    if not (folder / PROMPT_FILE).is_file():
        raise MissingResourceError(
            f"The data set {source.name!r} has no dataset/{PROMPT_FILE}: looked for {folder / PROMPT_FILE}. It must have the "
            "layout of google/dreambooth; change `subject.data.path` in workflow/scales/, or complete the folder."
        )
    return folder


def subject_files(folder: Path, subject: str) -> list[Path]:
    """A subject's photographs, sorted by name.

    Raises:
        MissingResourceError: the subject has no photographs.
    """
    found = sorted(file for file in (folder / subject).glob("*") if file.suffix.lower() in PICTURES)
    if not found:
        present = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise MissingResourceError(f"No picture of the subject {subject!r} in {folder / subject}. Subjects there: {present}.")
    return found


def subject_class(folder: Path, subject: str) -> str:
    """The class noun of a subject.

    Raises:
        ConfigurationError: the prompt file does not list the subject.
    """
    file = folder / PROMPT_FILE
    classes, _ = read_prompt_file(file.read_text(encoding="utf-8"), str(file))
    if subject not in classes:
        raise one_of("subject", subject, classes, str(file))
    return classes[subject]


def subject_prompts(folder: Path, subject: str, token: str, limit: int | None, live: Sequence[str]) -> list[Prompt]:
    """The prompts of a subject, assigned alternately to the two halves (or as given in ``metadata.json``).

    Args:
        folder: from `dataset_folder`.
        subject: name of a subject.
        token: the identifier; "" for prompts without one.
        limit: number of prompts, chosen at equal intervals; None for all.
        live: classes that use the prompts for live subjects.

    Raises:
        ConfigurationError: the prompt file does not list the subject, or fewer than two prompts are left.
    """
    file = folder / PROMPT_FILE
    _, templates = read_prompt_file(file.read_text(encoding="utf-8"), str(file))
    noun = subject_class(folder, subject)
    listed = templates["live"] if noun in live and templates["live"] else templates["object"]
    count = len(listed) if limit is None else min(limit, len(listed))
    if count < 2:
        raise ConfigurationError(
            f"{count} prompts for {subject!r} cannot be divided into two halves: raise `subject.prompts.limit`."
        )
    known: dict[str, Any] = {}
    if (folder / METADATA_FILE).is_file():
        entries = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8")).get("prompts", [])
        known = {entry["template"]: entry for entry in entries}
    chosen = []
    for index in range(count):
        number = index * len(listed) // count
        template = listed[number]
        attributes = tuple((key, str(known[template][key])) for key in ATTRIBUTES if key in known.get(template, {}))
        text, plain = (filled(template, word, noun) for word in (token, ""))
        chosen.append(Prompt(number, text, plain, HALVES[index % 2], attributes))
    if all(entry.get("split") in HALVES for entry in known.values()) and all(listed[p.number] in known for p in chosen):
        as_recorded = [dataclasses.replace(p, half=known[listed[p.number]]["split"]) for p in chosen]
        if {p.half for p in as_recorded} == set(HALVES):
            return as_recorded
    return chosen


def filled(template: str, token: str, noun: str) -> str:
    """A template with the identifier for {0} and the class for {1}, and with "an" for "a" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(template.format(token, noun).split()))


def unrelated_prompts(prompts: Sequence[str], noun: str) -> list[str]:
    """The prompts that do not contain a class noun, as whole words in any case.

    Raises:
        ConfigurationError: none is left.
    """
    named = re.compile(rf"\b{re.escape(noun)}\b", re.IGNORECASE)
    kept = [prompt for prompt in prompts if not named.search(prompt)]
    if not kept:
        raise ConfigurationError(
            f"Every prompt in `subject.drift.prompts` contains the class {noun!r}. Add one about another thing."
        )
    return kept


def read_pictures(files: Sequence[Path], size: int) -> torch.Tensor:
    """Images as (N, 3, size, size) in [0, 1]: the centre square of each, resized.

    Raises:
        MissingResourceError: a file cannot be read as an image.
    """
    found = []
    for file in files:
        try:
            with Image.open(file) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGB")
                found.append(np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS), dtype=np.uint8))
        except OSError as error:
            raise MissingResourceError(f"{file} cannot be read as a picture: {error}. Restore it, or remove it.") from error
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255
