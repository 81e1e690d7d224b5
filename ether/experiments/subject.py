"""Subject-driven generation (Sec. 5.1.1, App. C.1, Tables 2, 6 and 11): DreamBooth on a text-to-image diffusion model.

A run's task is a subject, by its folder's name in google/dreambooth's layout (``dataset/<subject>/*.jpg``,
``dataset/prompts_and_classes.txt``). The UNet learns "a photo of qwe <class>" from the subject's few photographs and, by
prior preservation, goes on drawing "a photo of <class>" as the frozen model did; VAE and text encoder stay frozen.

Every method, learning rate and seed draws its samples from the same noise (one start an image of a prompt), so that
two runs' pictures differ by nothing but what was trained. Each evaluation's rows carry these splits:

    validation      all prompts; metrics dino, clip_i, clip_t, lpips_real, lpips_prompt (``ether.measures.images``),
                    with a reader background, colour and class (shares of the images that show what was asked for), and
                    score, the mean of ``selection.metrics``
    selection, report   the same over one half of the prompts each
    last, best      the values of `report` at the last step, and at the step whose `selection` has the highest score:
                    the paper selects on the metric it reports, which this avoids
    geometry        distances and hyperspherical energies (``ether.measures.geometry.summary``)
    train           loss
    real            (step 0) the row of real images: its photographs compared with one another

Samples of the last evaluation lie under ``results/<scale>/samples/<experiment>/<run id>/``: ``<prompt>-<image>.png``,
``sheet.png`` with all of them, and ``samples.json`` with the prompts.

What a scale says (``settings``; everything is required but what has a default here)::

    model: {path, revision, weights: safetensors, resolution: null}    null: the pipeline's own
    data: {path, revision}
    judges:
      dino: {path, revision, weights: safetensors, subfolder: ""}  weights: safetensors | bin
      clip: the same
      lpips: judge                                                 judge | alex
      reader: null                                                 {path, subfolder} of ``ether.foundation.image_judges``'
                                                                   reader, which knows the world of scenes only
    layers: attention
    head: []
    prompts: {token: qwe, limit: null, live: [cat, dog]}           limit: that many of the 25, evenly spaced;
                                                                   live: classes that get the list for live subjects
    sampling: {steps, guidance, images_per_prompt, batch, scheduler: null, seed: 0}    null: the pipeline's own
    selection: {metrics: [dino, clip_t]}
    prior: {images, weight}                                        0 images: no prior preservation

and its ``training``, with each method's own learning rate: learning_rate, batch_size, accumulation, max_steps, warmup,
schedule, weight_decay, max_grad_norm, evaluations, checkpoint_steps, precision, dropout.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ether import hub
from ether.config import RunSpec
from ether.errors import ConfigurationError, MissingResourceError, one_of
from ether.experiments import Fitted, Loaded
from ether.methods.layer_sets import layer_set
from ether.measures import geometry, images
from ether.results import atomic, digest, file_digest, write_text
from ether.silence import quiet
from ether.training import DivergenceStop, RankAllocation, Trainer, latest_checkpoint

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
PROMPT_FILE = "prompts_and_classes.txt"
HALVES = ("selection", "report")
SCHEDULERS = {"ddim": "DDIMScheduler", "dpm": "DPMSolverMultistepScheduler", "ddpm": "DDPMScheduler"}
ASKED = ("background", "colour")  # what a prompt may ask for, as metadata.json has it


# --- the data set ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a subject."""

    number: int
    text: str  # with the made-up word: what the model is asked
    plain: str  # without it: what CLIP-T compares the picture with
    half: str  # selection | report
    asks: tuple[tuple[str, str], ...] = ()  # (property, value): what a picture of it shows, where that is known


def read_prompt_file(text: str, where: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """google/dreambooth's ``prompts_and_classes.txt``: ({subject: class}, {"object" | "live": templates}).

    Templates have {0} for the made-up word and {1} for the class.

    Raises:
        MissingResourceError: no classes or no prompts in it.
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
            f"{where} names no {'prompts' if classes else 'classes'}: it is read in google/dreambooth's form, with the headings "
            "'Classes', 'Object Prompts' and 'Live Subject Prompts'."
        )
    return classes, prompts


def dataset_folder(source: hub.Source, subject: str | None = None) -> Path:
    """The folder that holds the subjects' folders; from the hub, the prompt file and one subject are downloaded.

    Raises:
        MissingResourceError: it is not there, or the hub cannot be reached.
    """
    if source.folder is not None:
        folder = source.folder / "dataset"
    else:
        from huggingface_hub import snapshot_download

        wanted = [f"dataset/{PROMPT_FILE}", "dataset/metadata.json", *([f"dataset/{subject}/*"] if subject else [])]
        with hub.explained(source, "data set", "subject.data.path"):
            root = snapshot_download(source.name, repo_type="dataset", revision=source.revision, allow_patterns=wanted)
        folder = Path(root) / "dataset"
    if not (folder / PROMPT_FILE).is_file():
        raise MissingResourceError(
            f"The data set {source.name!r} has no dataset/{PROMPT_FILE}: looked for {folder / PROMPT_FILE}. It is laid out as "
            "google/dreambooth is; change `subject.data.path` in workflow/scales/, or complete the folder."
        )
    return folder


def subject_files(folder: Path, subject: str) -> list[Path]:
    """A subject's photographs, by name.

    Raises:
        MissingResourceError: there are none.
    """
    found = sorted(file for file in (folder / subject).glob("*") if file.suffix.lower() in PICTURES)
    if not found:
        there = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise MissingResourceError(f"No picture of the subject {subject!r} in {folder / subject}. Subjects there: {there}.")
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
    """The prompts of a subject, in two halves that take turns (or as ``metadata.json`` has them).

    Raises:
        ConfigurationError: the prompt file does not list the subject, or fewer than two prompts are left.
    """
    file = folder / PROMPT_FILE
    _, templates = read_prompt_file(file.read_text(encoding="utf-8"), str(file))
    noun = subject_class(folder, subject)
    listed = templates["live"] if noun in live and templates["live"] else templates["object"]
    count = len(listed) if limit is None else min(limit, len(listed))
    if count < 2:
        raise ConfigurationError(f"{count} prompts for {subject!r} cannot be put in two halves: raise `subject.prompts.limit`.")
    known: dict[str, Any] = {}
    if (folder / "metadata.json").is_file():
        said = json.loads((folder / "metadata.json").read_text(encoding="utf-8")).get("prompts", [])
        known = {entry["template"]: entry for entry in said}
    chosen = []
    for place in range(count):
        number = place * len(listed) // count
        template = listed[number]
        asks = tuple((key, str(known[template][key])) for key in ASKED if key in known.get(template, {}))
        text, plain = (" ".join(template.format(word, noun).split()) for word in (token, ""))
        chosen.append(Prompt(number, text, plain, HALVES[place % 2], asks))
    if all(entry.get("split") in HALVES for entry in known.values()) and all(listed[p.number] in known for p in chosen):
        as_said = [dataclasses.replace(p, half=known[listed[p.number]]["split"]) for p in chosen]
        if {p.half for p in as_said} == set(HALVES):
            return as_said
    return chosen


def read_pictures(files: Sequence[Path], size: int) -> torch.Tensor:
    """(N, 3, size, size) in [0, 1]: the centre square of each picture, resized.

    Raises:
        MissingResourceError: a file is no picture.
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


# --- drawing ---------------------------------------------------------------------------------------------------


def generator(*what: object) -> torch.Generator:
    """Random numbers for a purpose: the same words, the same numbers, on every machine and in every order of use."""
    seed = int.from_bytes(hashlib.sha256("\0".join(map(str, what)).encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


class Studio:
    """A Stable Diffusion pipeline with fixed prompts, noise and sampler: the same request for every model in it."""

    def __init__(self, pipeline: Any, sampling: Mapping[str, Any], size: int, device: str, precision: str = "float32") -> None:
        self.pipeline, self.sampling, self.size, self.device = pipeline, sampling, size, device
        self.autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision) if device != "cpu" else None
        self.latent = (
            pipeline.unet.config.in_channels,
            size // pipeline.vae_scale_factor,
            size // pipeline.vae_scale_factor,
        )

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, L, D): the frozen text encoder's reading of N texts."""
        parts = []
        for start in range(0, len(texts), 32):
            part = list(texts[start : start + 32])
            parts.append(self.pipeline.encode_prompt(part, self.device, 1, False)[0])
        return torch.cat(parts)

    @torch.no_grad()
    def latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] -> the VAE's latents (the mean of its distribution), scaled as the UNet knows them."""
        vae = self.pipeline.vae
        parts = [
            vae.encode((2 * part - 1).to(self.device, vae.dtype)).latent_dist.mode().float()
            for part in pictures.split(int(self.sampling["batch"]))
        ]
        return torch.cat(parts) * vae.config.scaling_factor

    def noise(self, names: Sequence[str]) -> torch.Tensor:
        """A start for each image, (N, C, h, w), from its name and the sampling seed alone."""
        seed = self.sampling.get("seed", 0)
        return torch.stack([torch.randn(self.latent, generator=generator("sample", seed, name)) for name in names])

    @torch.no_grad()
    def draw(self, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) as 8-bit numbers, uint8: what is judged is what is saved.

        embeddings: (N, L, D), noise: (N, C, h, w), a row an image.

        Raises:
            FloatingPointError: the model's output is not finite.
        """
        unet, count = self.pipeline.unet, int(self.sampling["batch"])
        was_training = unet.training
        unet.eval()
        empty = self.encode([""])
        context = torch.autocast("cuda", self.autocast) if self.autocast else contextlib.nullcontext()
        drawn = []
        try:
            with context:
                for start in range(0, len(noise), count):
                    part = embeddings[start : start + count]
                    drawn.append(
                        self.pipeline(
                            prompt_embeds=part,
                            negative_prompt_embeds=empty.expand(len(part), -1, -1),
                            latents=noise[start : start + count].to(self.device, part.dtype),
                            height=self.size,
                            width=self.size,
                            num_inference_steps=int(self.sampling["steps"]),
                            guidance_scale=float(self.sampling["guidance"]),
                            generator=generator("sampler", start),
                            output_type="pt",
                        ).images.float()
                    )
        finally:
            unet.train(was_training)
        pictures = torch.cat(drawn)
        if not bool(torch.isfinite(pictures).all()):
            raise FloatingPointError("the model's pictures are not finite")
        return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def load_pipeline(source: hub.Source, sampling: Mapping[str, Any], device: str, safetensors: bool = True) -> Any:
    """The pipeline of a folder or hub id in single precision, without safety checker, with the sampler that the scale asks for.

    Raises:
        MissingResourceError: it cannot be loaded.
        ConfigurationError: unknown sampler.
    """
    with quiet("diffusers"):
        import diffusers

        with hub.explained(source, "model", "subject.model.path"):
            pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(
                source.location,
                use_safetensors=safetensors,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                **source.pin,
            )
        name = sampling.get("scheduler")
        if name is not None:
            if name not in SCHEDULERS:
                raise one_of("scheduler", name, SCHEDULERS, "subject.sampling.scheduler")
            pipeline.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        if any(parameter.dtype != torch.float32 for parameter in part.parameters()):
            part.float()  # a half-precision checkpoint
        part.requires_grad_(False).eval()
    pipeline = pipeline.to(device)
    return pipeline


# --- training --------------------------------------------------------------------------------------------------


class Draws(torch.utils.data.Dataset):
    """Numbers 0, 1, 2, ...: each stands for one draw of picture, noise and timestep."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index}


class DreamBooth(nn.Module):
    """The loss of DreamBooth: denoising the subject's pictures, and with prior preservation those of its class.

    What a draw is made of follows from the run's seed and the draw's number alone, so that a resumed run repeats it.

    Args:
        model: the adapted UNet.
        scheduler: a ``DDPMScheduler`` with the pipeline's noise schedule; its ``prediction_type`` says what is predicted.
        seed: the run's.
        instances: ((N, C, h, w) latents, (L, D) prompt embedding).
        prior: the same for the class's pictures, or None.
        weight: of the prior's loss.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: Any,
        seed: int,
        instances: tuple[torch.Tensor, torch.Tensor],
        prior: tuple[torch.Tensor, torch.Tensor] | None,
        weight: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.scheduler, self.seed, self.weight = scheduler, seed, weight
        self.parts = [("instance", *instances)] + ([("prior", *prior)] if prior else [])  # no buffers: not saved

    def _batch(self, name: str, latents: torch.Tensor, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen, noise, times = [], [], []
        for number in numbers:
            epoch, place = divmod(number, len(latents))
            order = torch.randperm(len(latents), generator=generator(self.seed, name, "epoch", epoch))
            chosen.append(int(order[place]))
            own = generator(self.seed, name, "draw", number)
            times.append(int(torch.randint(self.scheduler.config.num_train_timesteps, (), generator=own)))
            noise.append(torch.randn(latents.shape[1:], generator=own))
        device = latents.device
        return latents[chosen], torch.stack(noise).to(device), torch.tensor(times, device=device)

    def forward(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """index: (B,), numbers of draws. The mean loss of the batch's pictures, under ``loss``."""
        numbers = index.tolist()
        drawn = [(*self._batch(name, latents, numbers), embedding) for name, latents, embedding in self.parts]
        clean, noise, times = (torch.cat([part[i] for part in drawn]) for i in range(3))
        text = torch.cat([embedding.expand(len(numbers), -1, -1) for *_, embedding in drawn])
        noisy = self.scheduler.add_noise(clean, noise, times)
        predicted = self.model(noisy, times, encoder_hidden_states=text, return_dict=False)[0]
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            target = noise
        elif kind == "v_prediction":
            target = self.scheduler.get_velocity(clean, noise, times)
        elif kind == "sample":
            target = clean
        else:
            raise one_of("prediction type", kind, ("epsilon", "v_prediction", "sample"), "the pipeline's scheduler")
        losses = functional.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)
        parts = losses.split(len(numbers))
        return {"loss": parts[0].mean() + (self.weight * parts[1].mean() if len(parts) > 1 else 0)}


# --- evaluation ------------------------------------------------------------------------------------------------

Rows = list[tuple[int, str, str, float]]


class Evaluation:
    """What is asked of every model of a run: pictures of the prompts from fixed noise, judged, and its geometry."""

    def __init__(self, loaded: Loaded, spec: RunSpec) -> None:
        data = loaded.data
        self.studio: Studio = data["studio"]
        self.prompts: list[Prompt] = data["prompts"]
        self.judges: images.Judges = data["judges"]
        self.reader: Any = data["reader"]
        self.real: images.Real = data["real"]
        self.reference: dict[str, torch.Tensor] | None = data["reference"]
        self.score: list[str] = list(spec.settings["selection"]["metrics"])
        self.noun: str = data["class"]
        self.each = int(spec.settings["sampling"]["images_per_prompt"])
        self.energies: dict[str, dict[str, float]] = {}
        self.numbers = [prompt.number for prompt in self.prompts for _ in range(self.each)]
        self.embeddings = data["embeddings"].repeat_interleave(self.each, 0)
        self.noise = self.studio.noise([f"{p.number}/{image}" for p in self.prompts for image in range(self.each)])

    def draw(self) -> torch.Tensor:
        """Pictures (prompts * images, 3, H, W), uint8, in the order of the prompts.

        Raises:
            FloatingPointError: the model's output is not finite.
        """
        return self.studio.draw(self.embeddings, self.noise)

    def judge(self, pictures: torch.Tensor) -> dict[str, dict[str, float]]:
        """{split: {metric: value}} of pictures that `draw` made."""
        texts = {prompt.number: prompt.plain for prompt in self.prompts}
        shown = pictures.float() / 255
        seen = images.Generated.of(shown, self.numbers, texts, self.real, self.judges)
        values = {}
        readings = self.reader(shown) if self.reader else []
        for split in ("validation", *HALVES):
            among = [prompt for prompt in self.prompts if split in ("validation", prompt.half)]
            found = images.measure(seen, self.real, [prompt.number for prompt in among])
            found |= self._read(readings, among)
            if missing := [name for name in self.score if name not in found]:
                raise one_of("metric", missing[0], found, "subject.selection.metrics")
            found["score"] = sum(found[name] for name in self.score) / len(self.score)
            values[split] = found
        return values

    def _read(self, readings: Sequence[Mapping[str, str]], among: Sequence[Prompt]) -> dict[str, float]:
        """Share of the pictures in which the reader sees what was asked for, by property, and the subject's class."""
        if not readings:
            return {}
        right: dict[str, list[bool]] = {}
        asked = {prompt.number: dict(prompt.asks) | {"class": self.noun} for prompt in among}
        for number, reading in zip(self.numbers, readings, strict=True):
            for key, value in asked.get(number, {}).items():
                right.setdefault(key, []).append(reading["shape" if key == "class" else key] == value)
        return {key: sum(values) / len(values) for key, values in sorted(right.items())}

    def geometry(self, model: nn.Module) -> dict[str, float]:
        """See ``ether.measures.geometry.summary``; empty where a model has become singular."""
        try:
            return geometry.summary(model, self.reference, self.energies)
        except torch.linalg.LinAlgError:
            return {}


class Evaluating(transformers.TrainerCallback):
    """Evaluates every so many steps and keeps what was measured in a file a step, for a run that is resumed.

    It also has the loss logged at every checkpoint: the Trainer forgets the part of a mean that lies before one.
    """

    def __init__(self, evaluation: Evaluation, model: nn.Module, every: int, checkpoint: int | None, folder: Path) -> None:
        self.evaluation, self.model, self.every, self.checkpoint = evaluation, model, every, checkpoint
        self.folder = folder
        self.pictures: torch.Tensor | None = None  # of the last evaluation
        self.failure = ""

    def on_step_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        """After every optimizer step."""
        if self.checkpoint and state.global_step % self.checkpoint == 0:
            control.should_log = True
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.evaluate(state.global_step)

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.json"

    def evaluate(self, step: int) -> None:
        """Draws, judges and measures the model as it stands; pictures that cannot be drawn are left out."""
        rows: Rows = [(step, "geometry", name, value) for name, value in self.evaluation.geometry(self.model).items()]
        self.pictures, self.failure = None, ""
        try:
            self.pictures = self.evaluation.draw()
            for split, values in self.evaluation.judge(self.pictures).items():
                rows += [(step, split, name, value) for name, value in values.items()]
        except (FloatingPointError, torch.linalg.LinAlgError) as error:
            self.failure = str(error)
        write_text(json.dumps(rows), self._file(step))

    def rows(self, last: int) -> Rows:
        """Everything measured up to a step, this run's and what an interrupted one left."""
        found: Rows = []
        for file in sorted(self.folder.glob("step-*.json")):
            if int(file.stem.rpartition("-")[2]) <= last:
                found += [tuple(row) for row in json.loads(file.read_text(encoding="utf-8"))]
        return found

    def has(self, step: int) -> bool:
        """Whether that step was evaluated by this process, so that its pictures are at hand."""
        return self._file(step).is_file() and (self.pictures is not None or bool(self.failure))


def chosen_rows(rows: Rows, last: int) -> Rows:
    """The rows `last` and `best`: the report half at the last step, if there are pictures of it, and at the step whose
    pictures of the selection half score best."""
    scores = {step: value for step, split, name, value in rows if (split, name) == ("selection", "score")}
    finite = {step: value for step, value in scores.items() if math.isfinite(value)}
    chosen: Rows = [(step, "last", name, value) for step, split, name, value in rows if split == "report" and step == last]
    if finite:
        best = max(finite, key=lambda step: (finite[step], -step))  # the earliest of equals
        chosen += [(step, "best", name, value) for step, split, name, value in rows if split == "report" and step == best]
    return chosen


def real_row(pictures: torch.Tensor, judges: images.Judges) -> dict[str, float]:
    """The row of real images of Table 2 for one subject's photographs (N, 3, H, W): pairs i != j of its own pictures."""
    return images.measure_real(images.Real.of(pictures, judges), judges)


# --- samples ---------------------------------------------------------------------------------------------------


def save_picture(picture: torch.Tensor, file: Path) -> None:
    """Writes (3, H, W), uint8, as PNG."""
    with atomic(file) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary, format="PNG")


def contact_sheet(pictures: torch.Tensor, labels: Sequence[str], columns: int) -> Image.Image:
    """All pictures (N, 3, H, W), uint8, a row of `columns` a label, each enlarged to at least 96 pixels a side."""
    side = pictures.shape[-1] * max(1, math.ceil(96 / pictures.shape[-1]))
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


def save_samples(folder: Path, pictures: torch.Tensor, prompts: Sequence[Prompt], each: int, about: Mapping[str, Any]) -> None:
    """One PNG an image, the contact sheet, and last ``samples.json``."""
    files = []
    for number, picture in enumerate(pictures):
        prompt = prompts[number // each]
        files.append({"file": f"{prompt.number:02d}-{number % each}.png", "prompt": prompt.text, "half": prompt.half})
        save_picture(picture, folder / files[-1]["file"])
    with atomic(folder / "sheet.png") as temporary:
        contact_sheet(pictures, [prompt.text for prompt in prompts], each).save(temporary, format="PNG")
    write_text(json.dumps({**about, "images": files}, indent=2) + "\n", folder / "samples.json")


# --- the experiment --------------------------------------------------------------------------------------------


class Subject:
    """The subject-driven experiment."""

    # --- before training ---

    def check(self, spec: RunSpec, results: Path) -> None:
        """Models, judges, pictures and prompts are there, and every block count divides its dimensions."""
        source = hub.model_source(spec.settings["model"], spec.resources, results)
        data = hub.data_source(spec.settings["data"], spec.resources, results)
        for role in ("dino", "clip"):
            hub.model_source(spec.settings["judges"][role], spec.resources, results)
        if spec.settings["judges"]["lpips"] == "alex":
            images.need_torchvision()
        if data.folder is not None:
            folder = dataset_folder(data)
            subject_files(folder, spec.task)
            self._prompts(spec, folder)
        scheduler = spec.settings["sampling"].get("scheduler")
        if scheduler is not None and scheduler not in SCHEDULERS:
            raise one_of("scheduler", scheduler, SCHEDULERS, "subject.sampling.scheduler")
        _adaptable(source, json.dumps(spec.adapt, sort_keys=True), spec.settings["layers"])

    def _prompts(self, spec: RunSpec, folder: Path) -> list[Prompt]:
        wanted = spec.settings["prompts"]
        return subject_prompts(folder, spec.task, wanted["token"], wanted.get("limit"), wanted.get("live", ("cat", "dog")))

    # --- loading ---

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded:
        """The frozen pipeline, the subject's latents, those of its class, prompts, noise and judges."""
        settings, hyper = spec.settings, spec.hyperparameters
        source = hub.model_source(settings["model"], spec.resources, results)
        data = hub.data_source(settings["data"], spec.resources, results)
        safetensors = settings["model"].get("weights", "safetensors") == "safetensors"
        pipeline = load_pipeline(source, settings["sampling"], device, safetensors)
        size = settings["model"].get("resolution") or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        studio = Studio(pipeline, settings["sampling"], size, device, hyper.get("precision", "float32"))
        folder = dataset_folder(data, spec.task)
        files = subject_files(folder, spec.task)
        pictures = read_pictures(files, size)
        noun = subject_class(folder, spec.task)
        token = settings["prompts"]["token"]
        prompts = self._prompts(spec, folder)
        wanted_reader = settings["judges"].get("reader")
        judges = _judges(json.dumps([settings["judges"], spec.resources], sort_keys=True), results, device)
        fingerprint = hub.fingerprint(source)
        prior = None
        if settings["prior"]["images"] and settings["prior"]["weight"]:
            text = f"a photo of {noun}"
            shown = class_pictures(studio, text, settings["prior"]["images"], fingerprint, results / "cache" / "class-images")
            prior = (studio.latents(shown.float() / 255), studio.encode([text])[0])
        reference = None
        if spec.adapt["kind"] != "peft":
            pattern = re.compile(layer_set("unet", settings["layers"]))
            reference = {
                name: module.weight.detach().clone()
                for name, module in pipeline.unet.named_modules()
                if isinstance(module, nn.Linear) and pattern.fullmatch(name)
            }
        return Loaded(
            model=pipeline.unet,
            task_type=None,
            total_steps=int(hyper["max_steps"]),
            base_model=source.name,
            base_model_fingerprint=fingerprint,
            data_name=f"{data.name}/{spec.task}",
            data_fingerprint=digest([file_digest(file) for file in (*files, folder / PROMPT_FILE)], 32),
            dtype="float32",
            data={
                "studio": studio,
                "instances": (studio.latents(pictures), studio.encode([f"a photo of {token} {noun}"])[0]),
                "prior": prior,
                "prompts": prompts,
                "embeddings": studio.encode([prompt.text for prompt in prompts]),
                "class": noun,
                "judges": judges,
                "reader": _reader(json.dumps([wanted_reader, spec.resources], sort_keys=True), results, device),
                "real": images.Real.of(pictures, judges),
                "pictures": pictures,
                "reference": reference,
                "samples": results / "samples" / spec.experiment / spec.run_id,
            },
        )

    # --- training ---

    def fit(self, loaded: Loaded, model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains with the Trainer and evaluates ``evaluations`` times, evenly spaced, the last at the end."""
        hyper = spec.hyperparameters
        evaluation = Evaluation(loaded, spec)
        every = max(1, loaded.total_steps // hyper["evaluations"])
        saved = hyper["checkpoint_steps"] if (hyper["checkpoint_steps"] or 0) < loaded.total_steps else None
        evaluating = Evaluating(evaluation, model, every, saved, folder / "evaluations")
        status, reason, steps, seconds = "finished", "", 0, 0.0
        losses: Rows = []
        if any(parameter.requires_grad for parameter in model.parameters()):
            trainer, divergence = self._trainer(loaded, model, spec, folder, device, evaluating, every, saved)
            started = time.perf_counter()
            try:
                trainer.train(resume_from_checkpoint=latest_checkpoint(folder / "checkpoints"))
                reason = divergence.reason
            except (FloatingPointError, torch.linalg.LinAlgError) as error:
                reason = f"{error}" or repr(error)
            seconds = time.perf_counter() - started
            status, steps = ("diverged" if reason else "finished"), int(trainer.state.global_step)
            losses = [
                (int(entry["step"]), "train", "loss", float(entry["loss"]))
                for entry in trainer.state.log_history
                if "loss" in entry
            ]
        if not evaluating.has(steps):
            evaluating.evaluate(steps)
        if evaluating.failure:
            status = "diverged"
            reason = "; ".join(filter(None, (reason, f"no pictures at step {steps}: {evaluating.failure}")))
        rows = evaluating.rows(steps)
        rows += chosen_rows(rows, steps)
        rows += losses
        rows += [(0, "real", name, value) for name, value in images.measure_real(evaluation.real, evaluation.judges).items()]
        if evaluating.pictures is not None:
            about = {"run": spec.run_id, "method": spec.label, "subject": spec.task, "seed": spec.seed, "step": steps,
                     "learning_rate": hyper.get("learning_rate"), "scale": spec.scale}  # fmt: skip
            save_samples(loaded.data["samples"], evaluating.pictures, evaluation.prompts, evaluation.each, about)
        return Fitted(rows, steps, seconds, status, reason)

    def _trainer(
        self,
        loaded: Loaded,
        model: nn.Module,
        spec: RunSpec,
        folder: Path,
        device: str,
        evaluating: Evaluating,
        every: int,
        saved: int | None,
    ) -> tuple[Trainer, DivergenceStop]:
        from diffusers import DDPMScheduler

        hyper, data = spec.hyperparameters, loaded.data
        saving: dict[str, Any] = {"save_strategy": "no"}
        if saved:
            saving = {"save_strategy": "steps", "save_steps": saved, "save_total_limit": 2}
        arguments = transformers.TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            max_steps=loaded.total_steps,
            per_device_train_batch_size=hyper["batch_size"],
            gradient_accumulation_steps=hyper["accumulation"],
            learning_rate=hyper["learning_rate"],
            lr_scheduler_type=hyper["schedule"],
            warmup_steps=round(hyper["warmup"] * loaded.total_steps),
            weight_decay=hyper["weight_decay"],
            max_grad_norm=hyper["max_grad_norm"],
            bf16=hyper["precision"] == "bf16",
            fp16=hyper["precision"] == "fp16",
            seed=spec.seed,
            use_cpu=device == "cpu",
            logging_steps=max(1, every // 4),
            logging_nan_inf_filter=False,
            train_sampling_strategy="sequential",  # the draws' numbers are what is random
            remove_unused_columns=False,
            label_names=[],
            disable_tqdm=True,
            report_to=[],
            dataloader_pin_memory=device != "cpu",
            **saving,
        )
        scheduler = DDPMScheduler.from_config(data["studio"].pipeline.scheduler.config)
        module = DreamBooth(
            model, scheduler, spec.seed, data["instances"], data["prior"], float(spec.settings["prior"]["weight"])
        )
        divergence = DivergenceStop()
        trainer = Trainer(
            model=module,
            args=arguments,
            train_dataset=Draws(loaded.total_steps * hyper["batch_size"] * hyper["accumulation"]),
            callbacks=[divergence, RankAllocation(model), evaluating],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer, divergence


def class_pictures(studio: Studio, text: str, count: int, fingerprint: str, folder: Path) -> torch.Tensor:
    """Pictures of a class for prior preservation, (count, 3, H, W), uint8, by the frozen model; drawn once and kept.

    Args:
        studio: with the pipeline as it was loaded, not yet adapted.
        text: the class prompt.
        count: how many.
        fingerprint: of the pipeline.
        folder: where they are kept, one file for what decides them.
    """
    key = digest([text, count, fingerprint, dict(studio.sampling), studio.size, str(studio.autocast), studio.device], 20)
    file = folder / f"{key}.safetensors"
    if file.is_file():
        return load_file(file)["images"]
    noise = studio.noise([f"class/{text}/{number}" for number in range(count)])
    drawn = studio.draw(studio.encode([text]).expand(count, -1, -1), noise)
    with atomic(file) as temporary:
        save_file({"images": drawn.contiguous()}, temporary)
    return drawn


# --- cached helpers: a job's runs share judges ---------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _judges(wanted: str, results: Path, device: str) -> images.Judges:
    judges, resources = json.loads(wanted)
    with quiet("diffusers"):
        return images.load_judges(judges, resources, results, device)


@functools.lru_cache(maxsize=2)
def _reader(wanted: str, results: Path, device: str) -> Any:
    """A function from pictures (N, 3, H, W) in [0, 1] to what each of them shows, or None where a scale has none."""
    reader, resources = json.loads(wanted)
    if reader is None:
        return None
    from ether.foundation import image_judges
    from ether.worlds.scenes import SIZE

    source = hub.model_source(reader, resources, results)
    with quiet("diffusers"), hub.explained(source, "model", "subject.judges.reader.path"):
        model = image_judges.load_reader(Path(source.location) / (reader.get("subfolder") or ""))

    def read(pictures: torch.Tensor) -> list[dict[str, str]]:
        if pictures.shape[-1] != SIZE:
            pictures = functional.interpolate(pictures, SIZE, mode="bicubic", antialias=True).clamp(0, 1)
        said = image_judges.read(model, (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy())
        return [dict(zip(said, words, strict=True)) for words in zip(*said.values(), strict=True)]

    return read


@functools.lru_cache(maxsize=256)
def _adaptable(source: hub.Source, how: str, layers: str) -> None:
    """Applies the method to the UNet's architecture on the meta device: shapes are checked, nothing is loaded."""
    from ether.methods import adapt as methods

    with quiet("diffusers"):
        from diffusers import UNet2DConditionModel

        with hub.explained(source, "model", "subject.model.path"):
            config = UNet2DConditionModel.load_config(source.location, subfolder="unet", **source.pin)
        with torch.device("meta"):
            model: Any = UNet2DConditionModel.from_config(config)
    adapt = json.loads(how)
    values = dict.fromkeys(("dropout",), 0.0) | methods.step_values(100)
    adapted = methods.adapt(model, adapt, layers=layers, head=(), values=values)
    if methods.trainable(adapted) == 0 and adapt["kind"] != "none":
        raise ConfigurationError(f"{how} leaves nothing to train on {source.name}.")


EXPERIMENT = Subject()
