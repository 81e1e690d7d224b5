"""Training of ``text-to-image`` (`ether.foundation.text_to_image`): the autoencoder, then the UNet with the text encoder.

The UNet predicts the velocity. Half of the time steps are uniform and half have a probability proportional to the squared noise
level (`ether.foundation.times`): the content of a picture is decided at strong noise, its details at weak noise. The
experiments on this model tune it with the same distribution.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from ether import results
from ether.foundation import autoencoder, card, text_to_image
from ether.foundation.caption_tokenizer import build_tokenizer, encode
from ether.foundation.pretraining import MuonWithAdam, warm_up_and_decay
from ether.foundation.times import time_probabilities
from ether.worlds import pictures

STEPS, BATCH, WARM_UP = 5_000, 64, 100
RATE, MATRIX_RATE = 1.0e-3, 3.0e-3  # of AdamW (vectors, embeddings, first and last layer of the UNet) and of Muon
EMA = 0.998  # the saved weights are a moving average of the trained ones
CORPUS, EXAMPLES = 24_000, 16_000  # scenes for the UNet, pictures for the autoencoder
DROPPED = 0.1  # share of captions left empty, for classifier-free guidance


class Trainer:
    """UNet and text encoder with their optimisers, moving average and random number generator.

    Args:
        tokenizer: of the captions.
        steps: steps of the whole training, which determine the learning rates.
        generator: of time steps and noise; its device is the one of the training.
    """

    def __init__(self, tokenizer: CLIPTokenizer, steps: int, generator: torch.Generator) -> None:
        unet: Any = text_to_image.new_unet().train()
        text: Any = text_to_image.new_text_encoder(tokenizer).train()
        self.device = generator.device
        self.unet = unet.to(self.device, memory_format=torch.channels_last)
        self.text = text.to(self.device)
        self.named = {
            f"{part}.{name}": parameter
            for part, model in (("unet", self.unet), ("text", self.text))
            for name, parameter in model.named_parameters()
        }
        self.average = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        self.optimizer = MuonWithAdam(
            self.named, matrix_rate=MATRIX_RATE, rate=RATE, apart=("embedding", "conv_in", "conv_out"), weight_decay=0.01
        )
        self.step, self.generator = 0, generator
        self.factor = warm_up_and_decay(steps, WARM_UP)
        products = text_to_image.scheduler().alphas_cumprod
        self.signal, self.noise = (level.to(self.device) for level in (products.sqrt(), (1 - products).sqrt()))  # by time step
        self.times = time_probabilities(products, "noise").to(self.device)

    def train(self, latents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """One step on a batch: latents (batch, 16, 8, 8), tokens (batch, 20); returns the loss."""
        times = torch.multinomial(self.times, len(latents), replacement=True, generator=self.generator)
        noise = torch.randn(latents.shape, generator=self.generator, device=self.device)
        a, s = (table[times][:, None, None, None] for table in (self.signal, self.noise))
        context = self.text(tokens).last_hidden_state
        velocity = self.unet(a * latents + s * noise, times, context).sample
        loss = (velocity - (a * noise - s * latents)).square().mean()
        loss.backward()
        self.optimizer.step(self.factor(self.step))
        self.step += 1
        keep = min(EMA, self.step / (self.step + 9))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.named.values()], 1 - keep)
        return loss.detach()

    def averaged(self, tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """New models with the averaged weights."""
        unet, text = text_to_image.new_unet().eval(), text_to_image.new_text_encoder(tokenizer).eval()
        for part, model in (("unet", unet), ("text", text)):
            weights = {n.removeprefix(f"{part}."): t for n, t in self.average.items() if n.startswith(f"{part}.")}
            model.load_state_dict(
                {n: t.cpu() for n, t in weights.items()}, strict=False
            )  # buffers, such as position ids, are not among them
        return unet, text

    def save(self, file: Path) -> None:
        """Write the complete state of the training."""
        tensors = {"step": torch.tensor(self.step), "generator": self.generator.get_state()}
        for name, state in self.optimizer.states():
            tensors[f"value.{name}"], tensors[f"average.{name}"] = self.named[name].detach(), self.average[name]
            for key, value in state.items():
                tensors[f"state/{key}.{name}"] = value
        with results.atomic(file) as partial:
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, partial)

    @torch.no_grad()
    def resume(self, file: Path) -> None:
        """Restore the state that `save` wrote."""
        tensors = load_file(file)
        self.step = int(tensors["step"])
        self.generator.set_state(tensors["generator"])
        for name, state in self.optimizer.states():
            self.named[name].copy_(tensors[f"value.{name}"])
            self.average[name].copy_(tensors[f"average.{name}"])
            state.update(
                {
                    key.removeprefix("state/").removesuffix(f".{name}"): value.to(self.device)
                    for key, value in tensors.items()
                    if key.startswith("state/") and key.endswith(f".{name}")
                }
            )


def _save_pipeline(
    out: Path, unet: UNet2DConditionModel, text: CLIPTextModel, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Write a pipeline's folder, UNet and autoencoder in float16, and load it again in float32."""
    parts: dict[str, Any] = {
        "unet": copy.deepcopy(unet).half(),
        "vae": copy.deepcopy(vae).half(),
        "text_encoder": text,
        "tokenizer": tokenizer,
        "scheduler": text_to_image.scheduler(),
    }
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **absent).save_pretrained(out)
    return text_to_image.load(out)


def _prepare(tokenizer: CLIPTokenizer, seed: int, steps: int, device: str) -> tuple[AutoencoderKL, torch.Tensor, torch.Tensor]:
    """The trained autoencoder, the corpus's latents (scenes, 16, 8, 8) and its captions' tokens (scenes, 20)."""
    generator = torch.Generator(device).manual_seed(seed)
    shown, things = autoencoder.examples(seed, min(EXAMPLES, autoencoder.BATCH * steps))
    vae = autoencoder.train(shown, things, min(autoencoder.STEPS, steps), generator)
    shown, captions, _ = pictures.corpus(seed, min(CORPUS, BATCH * steps))  # a few steps need only a few scenes
    # Contiguous, as they are when read from disk: another memory layout would round differently.
    latents = autoencoder.standardise(vae, autoencoder.encode(vae, shown, device)).contiguous()
    return vae, latents, encode(tokenizer, captions)["input_ids"]


def pretrain(
    out: Path,
    *,
    seed: int = 0,
    steps: int = STEPS,
    threads: int = 1,
    device: str = "cpu",
    work: Path | None = None,
    every: float = 240.0,
) -> None:
    """Pretrain the autoencoder, then UNet and text encoder, and write the pipeline and its card to the folder `out`.

    Muon and AdamW with a short warm-up, and a linear decay over the second half. The same seed, steps and threads give the same
    weights on one kind of CPU; on a GPU they are similar, not equal.

    Args:
        out: folder of the pipeline.
        seed: of weights, corpus and noise.
        steps: of the UNet; the autoencoder takes at most `ether.foundation.autoencoder.STEPS`.
        threads: CPU threads.
        device: cpu or cuda.
        work: folder for the state from which an interrupted training is resumed; ``work/pipeline`` is the pipeline at that
            point. It does not change the result.
        every: seconds between two writes to `work`.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    spent = 0.0
    if work and (work / "prepared.safetensors").is_file():
        stored = load_file(work / "prepared.safetensors")
        latents, tokens = stored.pop("latents"), stored.pop("tokens")
        vae = autoencoder.new_autoencoder().eval()
        vae.load_state_dict(stored)
    else:
        vae, latents, tokens = _prepare(tokenizer, seed, steps, device)
        if work:
            with results.atomic(work / "prepared.safetensors") as partial:
                save_file({**vae.state_dict(), "latents": latents, "tokens": tokens}, partial)
    torch.manual_seed(seed + 1)  # the initial weights do not depend on the training of the autoencoder
    trainer = Trainer(tokenizer, steps, torch.Generator(device).manual_seed(seed + 1))
    if work and (work / "state.safetensors").is_file():
        trainer.resume(work / "state.safetensors")
        spent = float((work / "seconds.txt").read_text())
    latents, tokens, empty = (part.to(device) for part in (latents, tokens, encode(tokenizer, [""])["input_ids"]))
    saved, losses = time.monotonic(), []
    while trainer.step < steps:
        chosen = torch.randint(len(latents), (BATCH,), generator=trainer.generator, device=device)
        dropped = torch.rand(BATCH, 1, generator=trainer.generator, device=device) < DROPPED
        losses.append(trainer.train(latents[chosen], torch.where(dropped, empty, tokens[chosen])))
        if trainer.step % max(1, min(steps // 20, 100)) == 0:
            minutes = (spent + time.monotonic() - began) / 60
            print(f"unet, step {trainer.step}/{steps}: loss {torch.stack(losses).mean():.4f}, {minutes:.1f} min", flush=True)
            losses = []
        if work and time.monotonic() - saved > every:
            trainer.save(work / "state.safetensors")
            results.write_text(str(spent + time.monotonic() - began), work / "seconds.txt")
            _save_pipeline(work / "pipeline", *trainer.averaged(tokenizer), vae, tokenizer)
            saved = time.monotonic()
    _finish_decoder(vae, seed, steps, device)
    card.start(out)
    pipeline = _save_pipeline(out, *trainer.averaged(tokenizer), vae, tokenizer)
    minutes = (spent + time.monotonic() - began) / 60
    card.write(
        out,
        name="text-to-image",
        what="StableDiffusionPipeline that draws the world of pictures (ether.worlds.pictures) from captions",
        seed=seed,
        steps=steps,
        threads=threads,
        device=device,
        batch=BATCH,
        models={"unet": pipeline.unet, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder},
        minutes=minutes,
        scores=evaluate(pipeline, seed + 1, device),
        made_from="captions and pictures of drawings under free licences (ether/worlds/drawings/NOTICE)",
        packages=("diffusers",),
        details={
            "sampling": {
                "scheduler": "DDIMScheduler",
                "steps": text_to_image.SAMPLING_STEPS,
                "guidance": text_to_image.GUIDANCE,
            },
            "precision": "unet and vae are stored in float16 and loaded in float32; text_encoder is stored in float32",
        },
    )


def _finish_decoder(vae: AutoencoderKL, seed: int, steps: int, device: str) -> None:
    """The last part of the training: the decoder on noisy latents of the examples."""
    decoder_steps = min(autoencoder.DECODER_STEPS, steps)
    shown, things = autoencoder.examples(seed + 1, min(EXAMPLES, autoencoder.BATCH * decoder_steps))
    latents = autoencoder.encode(vae, shown, device)
    autoencoder.finish_decoder(vae, latents, shown, things, decoder_steps, torch.Generator(device).manual_seed(seed + 2))


def evaluate(pipeline: StableDiffusionPipeline, seed: int, device: str, count: int = 200) -> dict[str, float]:
    """The scores of the card: agreement with `count` captions of each kind, and the autoencoder's object PSNR in dB."""
    found = text_to_image.scores(pipeline.to(device), seed=seed, count=count)
    pipeline.to("cpu")
    subjects = [scene for subject in pictures.SUBJECTS for scene in pictures.photographs(subject, seed, pictures.IMAGES)]
    masks = np.stack([pictures.coverage(scene) > 0 for scene in subjects])
    psnr = {
        "autoencoder, object PSNR": autoencoder.object_psnr(pipeline.vae, *autoencoder.examples(seed + 100, 256)),
        "autoencoder, object PSNR of the subjects": autoencoder.object_psnr(pipeline.vae, pictures.render_many(subjects), masks),
    }
    return found | {name: round(value, 2) for name, value in psnr.items()}
