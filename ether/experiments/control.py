"""Controllable generation (Sec. 5.1.2, App. C.2, Tables 3, 6 and 9, Figures 5, 6, 7 and 10 to 12): a hint for each image.

ControlNet's hint encoder is trained beside the adapter of a text-to-image model, on images with captions and hints. A run's task
is the kind of hint (`ether.diffusion.control_data.ControlPairs`): ``semantic`` (S2I), ``landmarks`` or ``edges``. The encoder's
learning rate is the run's, but at most `cap`. VAE and text encoder are frozen.

For every method, learning rate and seed the images start from the same noise. The rows of a run have these splits:

    progress        every evaluation, on the first `sampling.between` examples: the judge's scores
                    (`ether.diffusion.control_evaluation.hint_scores`)
    validation      the last step, on all examples: the same, and ``fid`` with the number of images (``fid_samples``,
                    ``fid_reference``) and its bias at that number (``fid_bias``: of real images)
    real            (step 0) the scores of the real images: the judge's ceiling
    geometry        distances and hyperspherical energies (`ether.measures.geometry.summary`)
    train           loss

With ``refit_steps`` among the hyperparameters, the magnitudes of the adapted layers are trained after the rest
(`ether.methods.magnitude`), and the run is evaluated again.

Images of the last evaluation are saved with their hints and real images in
``results/<scale>/samples/<experiment>/<job>/<run id>/``.

Settings of a scale (required unless a default is given here)::

    model: {path, revision, weights: safetensors, resolution: null}    null: resolution of the pipeline
    data:
      path: null                    a folder with a folder for each task, or null
      train_split: train
      evaluation_split: validation
      tasks: {}                     for each task: path, revision, train_split, evaluation_split, captions; a part
                                    of a split is written as train[-1000:]
    judges: {features, segmenter, landmarks}    `ether.diffusion.control_judges.check_control_judges`
    layers: attention-geglu
    head: []
    limits: {train, evaluation}     null: all
    signal: {cap, block_channels: [16, 32, 96, 256], guided: false, start: null}
                                    start: a model as `model`; the encoder of each task from which the runs start
                                    (`ether.diffusion.control_encoders`), and which determines its channels;
                                    null: a new one
    sampling: {steps, guidance, batch, between, saved, scheduler: null, seed: 0}    saved: number of images that are saved
    times: uniform                  uniform | noise

The hyperparameters are those of `ether.training.training_arguments`, ``max_steps`` or ``epochs``, ``evaluations`` and
``refit_steps``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import nn
from torch.utils.data import Subset

from ether import hub
from ether.config import RunSpec
from ether.diffusion import control_data
from ether.diffusion.control_encoders import file_of
from ether.diffusion.control_evaluation import ControlEvaluation
from ether.diffusion.control_examples import EncodedExamples
from ether.diffusion.control_judges import check_control_judges, judged, shared_control_judges
from ether.diffusion.evaluation import EvaluationCallback
from ether.diffusion.losses import ControlLoss, SampleNumbers
from ether.diffusion.sampler import Sampler, build_unet, check_scheduler, load_pipeline
from ether.diffusion.samples import save_controlled
from ether.diffusion.signal import BLOCK_CHANNELS, ControlledUNet, load_encoder, new_encoder, optimizer
from ether.errors import ConfigurationError, MissingResourceError, one_of
from ether.experiments.common import SAMPLES, Fitted, Loaded, Rows, Skeleton
from ether.measures.frechet import FrechetJudge
from ether.methods.magnitude import add_magnitudes
from ether.results import digest
from ether.training import Trained, checkpoint_interval, steps_in_all, train, training_arguments

SPLITS = {"train_split": "train", "evaluation_split": "validation"}


@dataclasses.dataclass
class ControlData:
    """Training examples and evaluation of a task."""

    examples: EncodedExamples
    evaluation: ControlEvaluation
    start: Path | None  # file of the encoder with which a run starts


class ControlCallback(EvaluationCallback):
    """Evaluates within the training on few examples, and at its end on all."""

    def on_step_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: object,
    ) -> None:
        """See `EvaluationCallback.on_step_end`."""
        assert isinstance(self.evaluation, ControlEvaluation)
        self.evaluation.whole = state.global_step == state.max_steps
        super().on_step_end(args, state, control, **kwargs)
        self.evaluation.whole = True


def _data(settings: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The data settings of a task."""
    data = settings["data"]
    if task not in control_data.ControlPairs.KINDS:
        raise one_of("task", task, control_data.ControlPairs.KINDS, "control.tasks")
    of_task = (data.get("tasks") or {}).get(task)
    merged = SPLITS | {key: value for key, value in data.items() if key != "tasks"} | (of_task or {})
    if not merged.get("path"):
        raise MissingResourceError(f"`control.data` has no path for the task {task!r}: add `control.data.tasks.{task}.path`.")
    return merged | {"inner": "" if of_task else task}


def _pairs(source: hub.Source, data: Mapping[str, Any], split: str) -> list[control_data.Pair]:
    """The examples of a split.

    Raises:
        MissingResourceError: the data set is not in a folder, or is incomplete.
    """
    if source.folder is None:
        raise MissingResourceError(
            f"The data set {source.name!r} must be a folder with images and annotations: give --config mirror=FOLDER with "
            f"FOLDER/datasets/{source.name}/ (its layouts: ether/diffusion/control_data.py)."
        )
    folder = source.folder / data["inner"]
    captions = folder / data["captions"] if data.get("captions") else None
    name, start, end = _split(data[split])
    found = control_data.pairs(folder, name, captions)[start:end]
    if not found:
        raise MissingResourceError(f"The split {data[split]!r} of {folder} is empty: change `control.data` in workflow/scales/.")
    return found


def _split(text: str) -> tuple[str, int | None, int | None]:
    """The name and the slice of a split, as ``train[-1000:]``.

    Raises:
        ConfigurationError: the text is no split.
    """
    found = re.fullmatch(r"([\w-]+)(?:\[(-?\d*):(-?\d*)\])?", text)
    if found is None:
        raise ConfigurationError(f"{text!r} in `control.data` is no split: write a name, or a part of a split as train[-1000:].")
    start, end = (int(part) if part else None for part in found.groups()[1:])
    return found[1], start, end


def _start(spec: RunSpec, results: Path) -> Path | None:
    """The file of the encoder with which a run starts, or None for a new one.

    Raises:
        MissingResourceError: the model is not in a folder.
    """
    start = spec.settings["signal"].get("start")
    if not start:
        return None
    source = hub.model_source(start, spec.resources, results)
    if source.folder is None:
        raise MissingResourceError(
            f"The signal encoders {source.name!r} must be a folder: give --config mirror=FOLDER with "
            f"FOLDER/models/{source.name}/, or set `control.signal.start` to null."
        )
    return file_of(source.folder, spec.task)


class Control:
    """The experiment on controllable generation."""

    def check(self, spec: RunSpec, results: Path) -> None:
        """Checks that model, judges, scheduler and the data of both splits exist."""
        hub.model_source(spec.settings["model"], spec.resources, results)
        check_control_judges(spec.settings["judges"], spec.task, spec.resources, results)
        check_scheduler(spec.settings["sampling"])
        if file := _start(spec, results):
            load_encoder(file)
        data = _data(spec.settings, spec.task)
        source = hub.data_source(data, spec.resources, results)
        for split in SPLITS:
            _pairs(source, data, split)

    def skeleton(self, spec: RunSpec, results: Path) -> Skeleton:
        """The pipeline's UNet."""
        source = hub.model_source(spec.settings["model"], spec.resources, results)
        return Skeleton(digest(["unet", source.location, source.pin], 32), lambda: build_unet(source), None)

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded[ControlData]:
        """The frozen pipeline, the encoded training examples, and the evaluation with its judges."""
        settings, hyper = spec.settings, spec.hyperparameters
        source = hub.model_source(settings["model"], spec.resources, results)
        data = _data(settings, spec.task)
        folder = hub.data_source(data, spec.resources, results)
        safetensors = settings["model"].get("weights", "safetensors") == "safetensors"
        pipeline = load_pipeline(source, settings["sampling"], device, safetensors)
        size = settings["model"].get("resolution") or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        sampler = Sampler(pipeline, settings["sampling"], size, device, hyper.get("precision", "float32"))
        key = json.dumps([settings, spec.task, spec.resources, size], sort_keys=True)
        shared = _shared(key, folder, results, device)
        if shared.encoded is None:
            shared.encoded = EncodedExamples(shared.train, sampler)
        evaluation = ControlEvaluation(
            sampler,
            shared.validation,
            spec.task,
            shared.judges,
            shared.names,
            shared.frechet,
            int(settings["sampling"]["between"]),
            bool(settings["signal"].get("guided", False)),
        )
        return Loaded(
            model=pipeline.unet,
            task_type=None,
            total_steps=steps_in_all(hyper, len(shared.encoded)),
            base_model=source.name,
            base_model_fingerprint=hub.fingerprint(source),
            data_name=f"{folder.name}/{spec.task}",
            data_fingerprint=shared.fingerprint,
            dtype="float32",
            data=ControlData(shared.encoded, evaluation, _start(spec, results)),
        )

    def fit(self, loaded: Loaded[ControlData], model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains encoder and adapter, evaluates ``evaluations`` times at equal intervals, and re-fits the magnitudes if asked."""
        evaluation = loaded.data.evaluation
        evaluation.controlled = ControlledUNet(model, self._encoder(model, spec, loaded.data.start))
        try:
            return self._fit(loaded, evaluation.controlled, model, spec, folder, device)
        finally:
            evaluation.controlled.detach()

    @staticmethod
    def _encoder(model: nn.Module, spec: RunSpec, start: Path | None) -> ControlNetConditioningEmbedding:
        """The encoder with which the run starts."""
        if start:
            return load_encoder(start).float()
        return new_encoder(model, spec.settings["signal"].get("block_channels", BLOCK_CHANNELS), seed=spec.seed)

    def _fit(
        self, loaded: Loaded[ControlData], controlled: ControlledUNet, model: nn.Module, spec: RunSpec, folder: Path, device: str
    ) -> Fitted:
        hyper, evaluation = spec.hyperparameters, loaded.data.evaluation
        refit, total = int(hyper.get("refit_steps") or 0), loaded.total_steps
        rows: Rows = [(0, "real", name, value) for name, value in evaluation.measure_real().items()]
        seconds, offset = 0.0, 0
        for phase, steps in (("training", total), ("re-fitting", refit)):
            if not steps:
                continue
            if phase == "re-fitting":
                add_magnitudes(model)
                controlled.encoder.requires_grad_(False)
            every = max(1, steps // hyper["evaluations"])
            where = folder if phase == "training" else folder / phase
            callback = ControlCallback(evaluation, model, every, checkpoint_interval(hyper, steps), where / "evaluations")
            trained = self._train(loaded, controlled, model, spec, where, device, callback, steps, offset)
            if not callback.has(trained.steps):
                callback.evaluate(trained.steps)
            new = callback.rows(trained.steps) + trained.losses
            rows += [(step + offset, split, name, value) for step, split, name, value in new]
            seconds, offset = seconds + trained.seconds, offset + trained.steps
            status, reason = trained.status, trained.reason
            if callback.failure:
                status, reason = "diverged", "; ".join(filter(None, (reason, f"no pictures: {callback.failure}")))
            if status != "finished":
                break
        if callback.pictures is not None:
            kept = int(spec.settings["sampling"]["saved"])
            run_info = {
                "run": spec.run_id, "method": spec.method, "label": spec.label, "task": spec.task, "seed": spec.seed,
                "step": offset, "learning_rate": hyper.get("learning_rate"), "scale": spec.scale,
            }  # fmt: skip
            save_controlled(
                folder / SAMPLES,
                callback.pictures[:kept],
                evaluation.hints[:kept],
                evaluation.real[:kept],
                evaluation.texts[:kept],
                run_info,
            )
        return Fitted(rows, offset, seconds, status, reason)

    def _train(
        self,
        loaded: Loaded[ControlData],
        controlled: ControlledUNet,
        model: nn.Module,
        spec: RunSpec,
        folder: Path,
        device: str,
        callback: ControlCallback,
        steps: int,
        seen: int,
    ) -> Trained:
        """One phase of the training. seen: steps of earlier phases, whose samples are not repeated."""
        from diffusers import DDPMScheduler

        hyper, examples = spec.hyperparameters, loaded.data.examples
        scheduler = DDPMScheduler.from_config(loaded.data.evaluation.sampler.pipeline.scheduler.config)
        times = spec.settings.get("times", "uniform")
        loss = ControlLoss(controlled, scheduler, spec.seed, examples.batch, len(examples), examples.shape, times)
        arguments = training_arguments(
            hyper,
            steps,
            spec.seed,
            folder / "checkpoints",
            device,
            logging_steps=max(1, callback.every // 2),
            train_sampling_strategy="sequential",  # randomness is determined by the sample numbers
            remove_unused_columns=False,
            label_names=[],
        )
        batch = hyper["batch_size"] * hyper["accumulation"]
        return train(
            loss,
            arguments,
            adapted=model,
            callbacks=[callback],
            train_dataset=SampleNumbers(steps * batch, seen * batch),
            optimizers=(optimizer(loss, arguments, float(spec.settings["signal"]["cap"])), None),
        )


# --- shared by the runs of a job -------------------------------------------------------------------------------


@dataclasses.dataclass
class _Shared:
    """Data and judges of a task, which all runs of a job share."""

    train: Any
    validation: Any
    names: tuple[str, ...]
    judges: Any
    frechet: FrechetJudge
    fingerprint: str
    encoded: EncodedExamples | None = None  # by the first run: the frozen VAE and text encoder are the same for all


@functools.lru_cache(maxsize=2)
def _shared(key: str, source: hub.Source, results: Path, device: str) -> _Shared:
    """Reads the splits and loads the judges. key: JSON of the settings, the task, the resources, and the side of the images."""
    settings, task, resources, size = json.loads(key)
    data = _data(settings, task)
    known = control_data.classes(source.folder / data["inner"]) if task == "semantic" and source.folder else None
    found = {split: _pairs(source, data, split) for split in SPLITS}
    limits = {"train_split": settings["limits"]["train"], "evaluation_split": settings["limits"]["evaluation"]}
    found = {split: pairs[: limits[split]] for split, pairs in found.items()}
    read = {split: control_data.ControlPairs(pairs, task, size, known) for split, pairs in found.items()}
    train, validation = read["train_split"], read["evaluation_split"]
    judges = shared_control_judges(settings["judges"], task, resources, results, device)
    spare = min(len(train), 2 * len(validation))  # real images for the bias of the Fréchet distance
    images = [_images(Subset(examples, range(count))) for examples, count in ((validation, len(validation)), (train, spare))]
    frechet = FrechetJudge(functools.partial(judged, judges.features), images[0], images[1] if spare >= len(validation) else None)
    fingerprint = control_data.fingerprint([*found["train_split"], *found["evaluation_split"]])
    return _Shared(train, validation, known.names if known else (), judges, frechet, fingerprint)


def _images(examples: Any) -> torch.Tensor:
    """(N, 3, H, W), uint8."""
    return torch.stack([examples[index]["image"] for index in range(len(examples))])


EXPERIMENT = Control()
