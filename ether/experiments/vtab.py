"""VTAB (App. E, Table 12): image classification with a pretrained vision transformer, trained with transformers' Trainer.

The metric is the accuracy in percent (`score`). `class_mean` is its mean over classes, which some papers report for Caltech101
and Flowers102.

Settings of a scale (required unless a default is given here)::

    model: {path, revision, weights: safetensors}
    data:
      path: null                    one data set with a configuration for each task
      revision: null
      train_split: train            split names, for every task
      evaluation_split: test
      tasks: {}                     for each task: path, revision, config, train_split, evaluation_split, image, label; they
                                    override the above. image and label are names of columns; image can be a list of names,
                                    of which the first that exists is used
      train_per_class: 30           for data sets in class folders, which have no splits: the number of training images of a class
    preprocessing: {size, crop: null, mean, std, mode}    fields of `ether.preprocessing.Preprocessing`
    layers: all-linear
    head: [classifier]
    limits: {train, evaluation}     null: all; 1000 training examples are VTAB-1k's number

A data set in a folder (a mirror) is ``<config>/<split>.parquet``, with ``default`` for the configuration null, or a folder of
images for each class. Images of class folders are shuffled with a fixed seed; the first ``train_per_class`` of each class are the
training split, the others the evaluation split.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from ether import hub
from ether.config import RunSpec
from ether.errors import ConfigurationError, MissingResourceError
from ether.experiments.common import Fitted, Loaded, Skeleton, splits_fingerprint
from ether.preprocessing import Preprocessing
from ether.results import digest, file_digest
from ether.silence import quiet
from ether.training import steps_in_all, train_and_evaluate

MODEL, DATA = "vtab.model.path", "vtab.data"  # settings named in error messages
MEASURED = ("score", "class_mean", "loss")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".ppm", ".bmp")
KEPT = 1 << 30  # a split whose prepared images take at most this many bytes is kept in memory
# The defaults of a task's data settings.
COLUMNS = {"config": None, "train_split": "train", "evaluation_split": "test", "image": "image", "label": "label"}


def accuracies(outputs: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """The accuracy and its mean over the classes that occur, in percent.

    Args:
        outputs: logits (N, classes); those that are not finite count as 0.
        labels: (N,).
    """
    right = np.nan_to_num(np.asarray(outputs, dtype=np.float64)).argmax(axis=-1) == labels
    classes = [float(right[labels == label].mean()) for label in np.unique(labels)]
    return {"score": 100 * float(right.mean()), "class_mean": 100 * float(np.mean(classes))}


# --- data sets -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """Images with labels; an image is read when it is needed."""

    labels: NDArray[np.int64]
    read: Callable[[int], Any]  # index -> PIL image

    def limited(self, limit: int | None) -> Split:
        """The first examples after a fixed shuffle, identical for all runs."""
        if limit is None or limit >= len(self.labels):
            return self
        kept = np.random.default_rng(0).permutation(len(self.labels))[:limit]
        return Split(self.labels[kept], lambda index: self.read(int(kept[index])))


class Prepared(Dataset[dict[str, Any]]):
    """A split as the model's inputs: ``pixel_values`` (3, height, width) and ``labels``."""

    def __init__(self, split: Split, prepare: Preprocessing) -> None:
        self.split, self.prepare = split, prepare
        self.kept: list[torch.Tensor] | None = None
        if len(split.labels) and len(split.labels) * self._pixels(0).nbytes <= KEPT:
            self.kept = [self._pixels(index) for index in range(len(split.labels))]

    def _pixels(self, index: int) -> torch.Tensor:
        image = np.asarray(self.split.read(index).convert("RGB"))
        return self.prepare(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255)[0]

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self._pixels(index) if self.kept is None else self.kept[index]
        return {"pixel_values": pixels, "labels": int(self.split.labels[index])}


def class_folders(folder: Path) -> list[Path]:
    """The folders of a data set in which every class is a folder of images, sorted by name; empty if there is none.

    They are in the folder itself or in its only subfolder.
    """
    inner = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [path for path in inner if any(file.suffix.lower() in SUFFIXES for file in path.iterdir())]
    return found or (class_folders(inner[0]) if len(inner) == 1 else [])


def _classes(source: hub.Source, settings: Mapping[str, Any]) -> list[Path]:
    """The class folders of a data set that is a folder without one for its configuration."""
    if source.folder is None or (source.folder / (settings["config"] or "default")).is_dir():
        return []
    return class_folders(source.folder)


def folder_splits(source: hub.Source, classes: Sequence[Path], train_per_class: int) -> tuple[Split, Split]:
    """Training and evaluation split of class folders.

    Raises:
        ConfigurationError: a class has no image left for the evaluation split.
    """
    chosen: tuple[list[tuple[Path, int]], list[tuple[Path, int]]] = ([], [])
    for label, path in enumerate(classes):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if len(files) <= train_per_class:
            raise ConfigurationError(
                f"The class {path.name!r} of the data set {source.name!r} has {len(files)} images, and {train_per_class} of each "
                f"class are the training split: lower `{DATA}.train_per_class`."
            )
        order = np.random.default_rng([0, label]).permutation(len(files))
        for place, index in enumerate(order):
            chosen[int(place >= train_per_class)].append((files[index], label))
    return _of_files(chosen[0]), _of_files(chosen[1])


def _of_files(files: Sequence[tuple[Path, int]]) -> Split:
    from PIL import Image

    return Split(np.array([label for _, label in files], dtype=np.int64), lambda index: Image.open(files[index][0]))


def _of_rows(rows: Any, image: str, label: str, names: Sequence[str]) -> Split:
    values = rows[label]
    labels = [names.index(value) for value in values] if names else [int(value) for value in values]
    return Split(np.array(labels, dtype=np.int64), lambda index: rows[index][image])


# --- the experiment --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class VtabData:
    """The prepared splits of one task."""

    train: Prepared
    evaluation: Prepared


class Vtab:
    """The VTAB experiment."""

    divisible = True  # a batch, among several processes

    def _data(self, spec: RunSpec) -> dict[str, Any]:
        """The data settings of the run's task, all keys present."""
        data = spec.settings["data"]
        of_task = (data.get("tasks") or {}).get(spec.task)
        merged = COLUMNS | {key: value for key, value in data.items() if key != "tasks"} | (of_task or {})
        if not merged.get("path"):
            raise ConfigurationError(f"`{DATA}` has no path for the task {spec.task!r}: add `{DATA}.tasks.{spec.task}.path`.")
        if of_task is None and merged["config"] is None:
            merged["config"] = spec.task
        return merged

    def check(self, spec: RunSpec, results: Path) -> None:
        """Checks that the model exists, and the data with their splits and columns."""
        hub.model_source(spec.settings["model"], spec.resources, results)
        settings = self._data(spec)
        source = hub.data_source(settings, spec.resources, results)
        if source.folder is None:
            return
        if classes := _classes(source, settings):
            folder_splits(source, classes, settings.get("train_per_class", 30))
            return
        for split in (settings["train_split"], settings["evaluation_split"]):
            columns = (settings["label"],) if isinstance(settings["image"], list) else (settings["image"], settings["label"])
            hub.check_columns(source, settings["config"] or "default", split, columns, DATA)

    def skeleton(self, spec: RunSpec, results: Path) -> Skeleton:
        """The encoder with a head for two classes; no method adapts the head."""
        source = hub.model_source(spec.settings["model"], spec.resources, results)

        def build() -> nn.Module:
            with hub.explained(source, "model", MODEL), quiet():
                config = transformers.AutoConfig.from_pretrained(source.location, num_labels=2, **source.pin)
                return transformers.AutoModelForImageClassification.from_config(config)

        return Skeleton(digest(["vtab", source.location, source.pin], 32), build, None)

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded[VtabData]:
        """The pretrained encoder with a new head, and the prepared splits."""
        settings, hyper = spec.settings, spec.hyperparameters
        source = hub.model_source(settings["model"], spec.resources, results)
        of_task = self._data(spec)
        data = hub.data_source(of_task, spec.resources, results)
        key = json.dumps([of_task, settings["preprocessing"], settings["limits"]], sort_keys=True)
        train, evaluation = _splits(data, key)
        labels = 1 + int(max(train.split.labels.max(), evaluation.split.labels.max()))
        dtype = settings["model"].get("dtype", "float32")
        transformers.set_seed(spec.seed)  # the head's initialisation
        with hub.explained(source, "model", MODEL), quiet():
            loaded = transformers.AutoModelForImageClassification.from_pretrained(
                source.location,
                output_loading_info=True,
                num_labels=labels,
                problem_type="single_label_classification",
                ignore_mismatched_sizes=True,  # a head for the classes of the pretraining is replaced
                dtype=getattr(torch, dtype),
                use_safetensors=source.safetensors(settings["model"]),
                **source.pin,
            )
        model = hub.complete(loaded, source, MODEL)
        return Loaded(
            model=model,
            task_type=None,
            total_steps=steps_in_all(hyper, len(train)),
            base_model=source.name,
            base_model_fingerprint=hub.fingerprint(source),
            data_name=f"{data.name}/{spec.task}",
            data_fingerprint=self._fingerprint(data, of_task),
            dtype=dtype,
            data=VtabData(train, evaluation),
        )

    def _fingerprint(self, source: hub.Source, settings: Mapping[str, Any]) -> str:
        if classes := _classes(source, settings):
            files = [file for folder in classes for file in sorted(folder.iterdir())]
            return digest([[f"{file.parent.name}/{file.name}", file_digest(file)] for file in files], 32)
        return splits_fingerprint(
            source, settings["config"] or "default", (settings["train_split"], settings["evaluation_split"])
        )

    def fit(self, loaded: Loaded[VtabData], model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains with the Trainer and evaluates ``evaluations`` times at equal intervals, the last time at the end."""
        rows, trained = train_and_evaluate(
            model,
            spec.hyperparameters,
            loaded.total_steps,
            spec.seed,
            folder,
            device,
            measured=MEASURED,
            train_dataset=loaded.data.train,
            eval_dataset=loaded.data.evaluation,
            compute_metrics=lambda p: accuracies(
                p.predictions[0] if isinstance(p.predictions, tuple) else p.predictions, p.label_ids
            ),
        )
        return Fitted(rows + trained.losses, trained.steps, trained.seconds, trained.status, trained.reason)


@functools.lru_cache(maxsize=8)
def _splits(source: hub.Source, key: str) -> tuple[Prepared, Prepared]:
    """The prepared splits of a task, shared by the runs of a job. key: JSON of the data settings, preprocessing and limits."""
    settings, preprocessing, limits = json.loads(key)
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in preprocessing.items()}
    prepare = Preprocessing(**({"crop": None} | fields))
    if classes := _classes(source, settings):
        splits = folder_splits(source, classes, settings.get("train_per_class", 30))
    else:
        splits = _row_splits(source, settings)
    limited = [split.limited(limit) for split, limit in zip(splits, (limits["train"], limits["evaluation"]), strict=True)]
    train, evaluation = (Prepared(split, prepare) for split in limited)
    return train, evaluation


def _row_splits(source: hub.Source, settings: Mapping[str, Any]) -> tuple[Split, Split]:
    """The splits of a data set with columns. Labels that are texts are numbered in alphabetical order.

    Raises:
        MissingResourceError: the data set, a split or a column is missing.
    """
    import datasets

    datasets.disable_progress_bars()
    names = settings["image"] if isinstance(settings["image"], list) else [settings["image"]]
    tables = []
    for split in (settings["train_split"], settings["evaluation_split"]):
        config = (settings["config"] or "default") if source.folder else settings["config"]
        rows = hub.load_split(source, config, split, (settings["label"],), DATA)
        present = [name for name in names if name in rows.column_names]
        if not present:
            raise MissingResourceError(
                f"The data set {source.name!r} has no column {' or '.join(names)}; it has {', '.join(rows.column_names)}. Change "
                f"`{DATA}.tasks.<task>.image` in workflow/scales/."
            )
        tables.append((rows, present[0]))
    values = [value for rows, _ in tables for value in rows[settings["label"]]]
    texts = sorted(set(values)) if values and isinstance(values[0], str) else []
    first, second = (_of_rows(rows, image, settings["label"], texts) for rows, image in tables)
    return first, second


EXPERIMENT = Vtab()
