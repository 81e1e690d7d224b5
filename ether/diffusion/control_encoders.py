"""``control-encoders``: hint encoders from which the runs of a small scale start.

The paper trains ControlNet's hint encoder from zero beside the adapter, for ten epochs of 20,000 images. In the few hundred steps
of a small scale, most of a run would be the encoder learning to be heard, which is the same for every method. So a small scale
can start from an encoder that was trained beside the frozen base model (`control.signal.start`); the runs go on training it
beside their adapters.

The folder has one file for each kind of hint, ``<kind>.safetensors`` (`ether.diffusion.signal.save_encoder`), in half precision.
The examples are those of the control world (`ether.worlds.control`) with another seed than the scales have. The base model is the
shipped ``text-to-image``.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from ether import foundation, hub
from ether.diffusion.control_evaluation import hint_scores
from ether.diffusion.control_examples import EncodedExamples
from ether.diffusion.control_judges import shared_control_judges
from ether.diffusion.losses import ControlLoss, SampleNumbers
from ether.diffusion.sampler import Sampler, load_pipeline
from ether.diffusion.signal import ControlledUNet, controlled_pictures, new_encoder, optimizer, save_encoder
from ether.foundation import card
from ether.training import train, training_arguments
from ether.worlds import control, pictures

__all__ = ["STEPS", "base", "evaluate", "file_of", "pretrain"]

STEPS = 400  # for each kind of hint
BATCH, RATE = 8, 3.0e-4
EXAMPLES, EVALUATED = 1200, 64
SAMPLING = {"steps": 15, "guidance": 2.5, "batch": 32, "seed": 0}
TRAINING = {
    "learning_rate": RATE, "batch_size": BATCH, "accumulation": 1, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0,
    "max_grad_norm": 1.0, "precision": "float32",
}  # fmt: skip


def file_of(folder: Path, kind: str) -> Path:
    """The file of the encoder for a kind of hint."""
    return folder / f"{kind}.safetensors"


def _examples(kind: str, split: str, seed: int, count: int) -> list[dict[str, Any]]:
    made = control.examples(kind, split, seed, count)
    return [
        {
            "image": torch.from_numpy(made.images[i]).permute(2, 0, 1),
            "hint": torch.from_numpy(made.hints[i]).permute(2, 0, 1),
            "caption": made.captions[i],
            "target": torch.from_numpy(made.targets[i]),
        }
        for i in range(count)
    ]


def _trained(kind: str, sampler: Sampler, seed: int, steps: int, device: str) -> ControlledUNet:
    """The frozen UNet with an encoder that was trained for `steps`."""
    unet = sampler.pipeline.unet.requires_grad_(False)
    encoded = EncodedExamples(_examples(kind, "train", seed + 1, min(EXAMPLES, BATCH * steps)), sampler)
    controlled = ControlledUNet(unet, new_encoder(unet, seed=seed))
    scheduler = DDPMScheduler.from_config(sampler.pipeline.scheduler.config)
    loss = ControlLoss(controlled, scheduler, seed, encoded.batch, len(encoded), encoded.shape, "noise")
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            TRAINING,
            steps,
            seed,
            Path(folder),
            device,
            logging_steps=steps,
            train_sampling_strategy="sequential",  # randomness is determined by the sample numbers
            remove_unused_columns=False,
            label_names=[],
        )
        train(loss, arguments, train_dataset=SampleNumbers(steps * BATCH), optimizers=(optimizer(loss, arguments, RATE), None))
    return controlled


def base(device: str = "cpu") -> Sampler:
    """A sampler of the shipped base model."""
    source = hub.Source("foundation/text-to-image", foundation.path("text-to-image"))
    return Sampler(load_pipeline(source, SAMPLING, device), SAMPLING, pictures.SIZE, device)


def evaluate(
    kind: str, sampler: Sampler, controlled: ControlledUNet, *, seed: int, count: int = EVALUATED
) -> tuple[list[dict[str, Any]], torch.Tensor, dict[str, float]]:
    """Images from new hints, measured by the shipped judges.

    Args:
        kind: semantic | landmarks | edges.
        sampler: from `base`.
        controlled: its UNet with an encoder.
        seed: of the examples.
        count: number of examples.

    Returns:
        The examples (image, hint, caption, target), the images (N, 3, 64, 64), uint8, and the scores
        (`ether.diffusion.control_evaluation.hint_scores`).
    """
    shown = _examples(kind, "tuning", seed, count)
    judges = {
        "features": {"path": "foundation/image-judges", "subfolder": "dino"},
        "segmenter": {"path": "foundation/control-judges", "subfolder": "segmenter"},
        "landmarks": {"path": "foundation/control-judges", "subfolder": "landmarks"},
    }
    of_task = shared_control_judges(judges, kind, {"mirror": None, "foundation": "shipped"}, Path(), sampler.device)
    hints = torch.stack([example["hint"] for example in shown])
    names = [f"{kind}/{number}" for number in range(count)]
    images = controlled_pictures(sampler, controlled, [example["caption"] for example in shown], names, hints)
    return shown, images, hint_scores(images, [example["target"] for example in shown], kind, of_task, control.CLASSES)


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1, device: str = "cpu") -> None:
    """Train an encoder for each kind of hint beside the frozen base model, and write them to the folder `out`.

    The same seed, steps and threads give the same weights on one kind of machine.

    Args:
        out: the folder.
        seed: of weights and examples.
        steps: for each kind.
        threads: CPU threads.
        device: cpu | cuda.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    card.start(out)
    encoders: dict[str, Any] = {}
    scores: dict[str, float] = {}
    for kind in control.TASKS:
        sampler = base(device)
        controlled = _trained(kind, sampler, seed, steps, device)
        encoders[kind] = controlled.encoder
        save_encoder(controlled.encoder.half(), file_of(out, kind))
        controlled.encoder.float()  # of what was written
        _, _, found = evaluate(kind, sampler, controlled, seed=seed + 2)
        scores |= {f"{kind}, {name}": round(value, 2) for name, value in found.items()}
        controlled.detach()
    card.write(
        out,
        name="control-encoders",
        what="hint encoders for the text-to-image model, trained beside it while it is frozen (ether.diffusion.control_encoders)",
        seed=seed,
        steps=steps,
        threads=threads,
        device=device,
        batch=BATCH,
        models=encoders,
        minutes=(time.monotonic() - began) / 60,
        scores=scores,
        made_from="pictures of drawings under free licences (ether/worlds/drawings/NOTICE)",
        details={"precision": "stored in float16 and loaded in float32"},
    )
