"""Subject-driven generation (Sec. 5.1.1, App. C.1, Tables 2, 6 and 11): DreamBooth on a text-to-image diffusion model.

A run's task is a subject, named after its folder in google/dreambooth's layout (`ether.diffusion.dataset`). The UNet
is trained on a few photographs of the subject with a prompt such as "a photo of qwe <class>". Prior preservation adds the loss on
images that the frozen model generated for "a photo of <class>". VAE and text encoder are frozen.

For every method, learning rate and seed the samples start from the same noise (one for each image of a prompt), so
that the images of two runs differ only by the trained weights. The rows of each evaluation have these splits:

    validation      all prompts; metrics dino, clip_i, clip_t, lpips_real, lpips_prompt (`ether.measures.images`); with a
                    reader background and colour (shares of the images with the attribute of their prompt); and
                    score, the mean of ``selection.metrics``. The main columns of the tables are this split at the last
                    step. In this split only, drift: one minus the cosine similarity (DINO) of the frozen and the adapted
                    model's images of unrelated prompts from the same noise, without the subject and its class. It is not
                    in the paper.
    selection, report   the same metrics but drift over one half of the prompts each
    last, best      the values of `report` at the last step, and at the step with the highest score in `selection`. The
                    paper selects a step by the reported metric; here selection and report use different prompts.
    geometry        distances and hyperspherical energies (`ether.measures.geometry.summary`)
    train           loss
    real            (step 0) the row of real images: the subject's photographs compared with one another

Samples of the last evaluation are saved in ``results/<scale>/samples/<experiment>/<job>/<run id>/``
(`ether.diffusion.samples`).

Settings of a scale (required unless a default is given here)::

    model: {path, revision, weights: safetensors, resolution: null}    null: resolution of the pipeline
    data: {path, revision}
    judges:
      dino: {path, revision, weights: safetensors, subfolder: ""}  weights: safetensors | bin
      clip: as dino
      lpips: judge                                                 judge | alex
      reader: null                                                 {path, subfolder} of the reader of
                                                                   `ether.foundation.image_judges`, for the world of
                                                                   pictures only
    layers: attention
    head: []
    prompts: {token: qwe, limit: null, live: [cat, dog]}           token: the subject's identifier; limit: number of
                                                                   prompts, at equal intervals in the list of 25;
                                                                   live: classes with the prompts for live subjects;
                                                                   instance: "a photo of {0} {1}" and prior: "a photo of
                                                                   {1}", the prompts of training, with {0} for the
                                                                   identifier and {1} for the class;
                                                                   fidelity: all | unaltered, the prompts of dino,
                                                                   clip_i and lpips_real; unaltered leaves out those
                                                                   that ask for another colour
    sampling: {steps, guidance, images_per_prompt, batch, scheduler: null, seed: 0}    null: scheduler of the pipeline
    selection: {metrics: [dino, clip_t]}
    prior: {images, weight}                                        0 images: no prior preservation
    times: uniform                                                 uniform | noise: distribution of the time steps of the
                                                                   loss (`ether.foundation.times.time_probabilities`)
    drift: null                                                    {prompts, images_per_prompt: 1}: unrelated prompts; a
                                                                   prompt that contains the subject's class is skipped

The hyperparameters are those of `ether.training.training_arguments`, ``max_steps`` and ``evaluations``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ether import hub
from ether.config import RunSpec
from ether.diffusion import dataset
from ether.diffusion.evaluation import Drift, Evaluation, EvaluationCallback
from ether.diffusion.judges import check_judges, shared_judges, shared_reader
from ether.diffusion.losses import DreamBoothLoss, SampleNumbers
from ether.diffusion.sampler import Sampler, build_unet, check_scheduler, class_pictures, load_pipeline
from ether.diffusion.samples import save_samples
from ether.errors import ConfigurationError
from ether.experiments.common import SAMPLES, Fitted, Loaded, Rows, Skeleton
from ether.measures import images
from ether.methods.layer_sets import layer_set
from ether.results import digest, file_digest
from ether.training import Trained, checkpoint_interval, chosen_rows, train, training_arguments

INSTANCE, PRIOR = "a photo of {0} {1}", "a photo of {1}"  # prompts of training, as in the scripts of DreamBooth


@dataclasses.dataclass
class SubjectData:
    """Training data and evaluation of a subject."""

    evaluation: Evaluation
    instances: tuple[torch.Tensor, torch.Tensor]  # (N, C, h, w) latents of the photographs, (L, D) embedding of their prompt
    prior: tuple[torch.Tensor, torch.Tensor] | None  # the same for the images of the class


class Subject:
    """The subject-driven experiment."""

    def check(self, spec: RunSpec, results: Path) -> None:
        """Checks that model, judge models, photographs, prompts and scheduler exist, and that a prompt for drift is left."""
        hub.model_source(spec.settings["model"], spec.resources, results)
        data = hub.data_source(spec.settings["data"], spec.resources, results)
        check_judges(spec.settings["judges"], spec.resources, results)
        if data.folder is not None:
            folder = dataset.dataset_folder(data)
            dataset.subject_files(folder, spec.task)
            self._altered(spec, self._prompts(spec, folder))
            if spec.settings.get("drift"):
                dataset.unrelated_prompts(spec.settings["drift"]["prompts"], dataset.subject_class(folder, spec.task))
        check_scheduler(spec.settings["sampling"])

    def _prompts(self, spec: RunSpec, folder: Path) -> list[dataset.Prompt]:
        prompts = spec.settings["prompts"]
        live = prompts.get("live", ("cat", "dog"))
        return dataset.subject_prompts(folder, spec.task, prompts["token"], prompts.get("limit"), live)

    def _altered(self, spec: RunSpec, prompts: Sequence[dataset.Prompt]) -> list[int]:
        """Numbers of the prompts that the metrics of subject fidelity leave out.

        Raises:
            ConfigurationError: prompts are to be left out and the data do not say which, or a half of the prompts is empty then.
        """
        if spec.settings["prompts"].get("fidelity", "all") == "all":
            return []
        if not any(prompt.attributes for prompt in prompts):
            raise ConfigurationError(
                f"`{spec.experiment}.prompts.fidelity` is unaltered, but the data set does not say which prompts change the"
                " subject's appearance. Use all."
            )
        kept = {prompt.half for prompt in prompts if not prompt.altered}
        if kept != set(dataset.HALVES):
            raise ConfigurationError(
                f"`{spec.experiment}.prompts`: every prompt of a half changes the subject's appearance. Raise `limit`, or set"
                " `fidelity` to all."
            )
        return [prompt.number for prompt in prompts if prompt.altered]

    def skeleton(self, spec: RunSpec, results: Path) -> Skeleton:
        """The pipeline's UNet."""
        source = hub.model_source(spec.settings["model"], spec.resources, results)
        return Skeleton(digest(["unet", source.location, source.pin], 32), lambda: build_unet(source), None)

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded[SubjectData]:
        """The frozen pipeline, the latents of the subject and of its class, prompts, noise and judge models."""
        settings, hyper = spec.settings, spec.hyperparameters
        source = hub.model_source(settings["model"], spec.resources, results)
        data = hub.data_source(settings["data"], spec.resources, results)
        safetensors = settings["model"].get("weights", "safetensors") == "safetensors"
        pipeline = load_pipeline(source, settings["sampling"], device, safetensors)
        size = settings["model"].get("resolution") or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        sampler = Sampler(pipeline, settings["sampling"], size, device, hyper.get("precision", "float32"))
        folder = dataset.dataset_folder(data, spec.task)
        files = dataset.subject_files(folder, spec.task)
        pictures = dataset.read_pictures(files, size)
        noun = dataset.subject_class(folder, spec.task)
        prompts = self._prompts(spec, folder)
        judges = shared_judges(settings["judges"], spec.resources, results, device)
        fingerprint = hub.fingerprint(source)
        prior = None
        if settings["prior"]["images"] and settings["prior"]["weight"]:
            text = dataset.filled(settings["prompts"].get("prior", PRIOR), "", noun)
            count, cache = settings["prior"]["images"], results / "cache" / "class-images"
            generated = class_pictures(sampler, text, count, fingerprint, cache)
            prior = (sampler.latents(generated.float() / 255), sampler.encode([text])[0])
        instance_text = dataset.filled(settings["prompts"].get("instance", INSTANCE), settings["prompts"]["token"], noun)
        evaluation = Evaluation(
            sampler,
            prompts,
            int(settings["sampling"]["images_per_prompt"]),
            judges,
            images.Real.of(pictures, judges),
            list(settings["selection"]["metrics"]),
            shared_reader(settings["judges"].get("reader"), spec.resources, results),
            self._drift(settings.get("drift"), sampler, noun, judges.dino, fingerprint, results),
            self._altered(spec, prompts),
            self._reference(spec, pipeline.unet),
        )
        return Loaded(
            model=pipeline.unet,
            task_type=None,
            total_steps=int(hyper["max_steps"]),
            base_model=source.name,
            base_model_fingerprint=fingerprint,
            data_name=f"{data.name}/{spec.task}",
            data_fingerprint=digest([file_digest(file) for file in (*files, folder / dataset.PROMPT_FILE)], 32),
            dtype="float32",
            data=SubjectData(
                evaluation,
                instances=(sampler.latents(pictures), sampler.encode([instance_text])[0]),
                prior=prior,
            ),
        )

    def _drift(
        self,
        drift: Mapping[str, Any] | None,
        sampler: Sampler,
        noun: str,
        judge: images.VisionJudge,
        fingerprint: str,
        results: Path,
    ) -> Drift | None:
        if not drift:
            return None
        prompts = dataset.unrelated_prompts(drift["prompts"], noun)
        return Drift(sampler, prompts, drift.get("images_per_prompt", 1), judge, fingerprint, results / "cache" / "drift-images")

    def _reference(self, spec: RunSpec, unet: nn.Module) -> dict[str, torch.Tensor] | None:
        """Copies of the pretrained weights of the adapted layers, for methods that train weights in place."""
        if spec.adapt["kind"] == "peft":
            return None
        pattern = re.compile(layer_set("unet", spec.settings["layers"]))
        return {
            name: module.weight.detach().clone()
            for name, module in unet.named_modules()
            if isinstance(module, nn.Linear) and pattern.fullmatch(name)
        }

    def fit(self, loaded: Loaded[SubjectData], model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains with the Trainer and evaluates ``evaluations`` times at equal intervals, the last time at the end."""
        hyper, evaluation = spec.hyperparameters, loaded.data.evaluation
        every = max(1, loaded.total_steps // hyper["evaluations"])
        interval = checkpoint_interval(hyper, loaded.total_steps)
        callback = EvaluationCallback(evaluation, model, every, interval, folder / "evaluations")
        status, reason, steps, seconds = "finished", "", 0, 0.0
        losses: Rows = []
        if any(parameter.requires_grad for parameter in model.parameters()):
            trained = self._train(loaded, model, spec, folder, device, callback)
            status, reason, steps, seconds = trained.status, trained.reason, trained.steps, trained.seconds
            losses = trained.losses
        if not callback.has(steps):
            callback.evaluate(steps)
        if callback.failure:
            status = "diverged"
            reason = "; ".join(filter(None, (reason, f"no pictures at step {steps}: {callback.failure}")))
        rows: Rows = callback.rows(steps)
        rows += chosen_rows(rows, steps)
        rows += losses
        rows += [(0, "real", name, value) for name, value in images.measure_real(evaluation.real, evaluation.judges).items()]
        if callback.pictures is not None:
            run_info = {
                "run": spec.run_id,
                "method": spec.method,
                "label": spec.label,
                "subject": spec.task,
                "seed": spec.seed,
                "step": steps,
                "learning_rate": hyper.get("learning_rate"),
                "scale": spec.scale,
            }
            save_samples(folder / SAMPLES, callback.pictures, evaluation.prompts, evaluation.each, run_info)
        return Fitted(rows, steps, seconds, status, reason)

    def _train(
        self,
        loaded: Loaded[SubjectData],
        model: nn.Module,
        spec: RunSpec,
        folder: Path,
        device: str,
        callback: EvaluationCallback,
    ) -> Trained:
        from diffusers import DDPMScheduler

        hyper, data = spec.hyperparameters, loaded.data
        scheduler = DDPMScheduler.from_config(data.evaluation.sampler.pipeline.scheduler.config)
        weight = float(spec.settings["prior"]["weight"])
        arguments = training_arguments(
            hyper,
            loaded.total_steps,
            spec.seed,
            folder / "checkpoints",
            device,
            logging_steps=max(1, callback.every // 4),
            train_sampling_strategy="sequential",  # randomness is determined by the sample numbers
            remove_unused_columns=False,
            label_names=[],
        )
        return train(
            DreamBoothLoss(
                model, scheduler, spec.seed, data.instances, data.prior, weight, spec.settings.get("times", "uniform")
            ),
            arguments,
            adapted=model,
            callbacks=[callback],
            train_dataset=SampleNumbers(loaded.total_steps * hyper["batch_size"] * hyper["accumulation"]),
        )


EXPERIMENT = Subject()
