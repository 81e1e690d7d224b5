"""``text-to-image``: a small Stable Diffusion that draws the world of scenes (`ether.worlds.scenes`) from captions.

The folder is one that ``diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)`` loads, with
diffusers' and transformers' own classes, so everything that is done to Stable Diffusion can be done to it:

- ``vae``: an `AutoencoderKL` from 32 x 32 x 3 to 8 x 8 x 16, trained first. Its latents' means and deviations are
  folded into its two 1 x 1 convolutions, so that every channel of a latent is standardised and ``scaling_factor`` is 1.
- ``text_encoder`` and ``tokenizer``: a `CLIPTextModel` of two layers x 128 over byte-pair tokens, where each word of
  the captions is one token; trained together with the UNet. Some spare tokens (`scenes.SPARE_TOKENS`) mean nothing:
  they occur before the noun of some captions of things, as a name would, so that a subject can be given one.
- ``unet``: a `UNet2DConditionModel` with self- and cross-attention at 8 x 8 and 4 x 4, as Stable Diffusion has it at its
  finer grids; without that at 8 x 8, tuning the attention layers, which is all that most methods tune, hardly moves
  what is drawn.
- ``scheduler``: DDIM with the squared-cosine noise schedule, predicting the velocity.

The loss is the squared error of the picture (not of the velocity or of the noise): its weight lies on strong noise,
where it is settled what is drawn. The picture's error is the velocity's times the noise's share; times are drawn as
often as the square of that share says, which comes to the same with less variance. `draw` gives the recommended
settings: 25 steps, guidance 2.5.
"""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ether import results
from ether.foundation import CARD
from ether.worlds import scenes

STEPS, BATCH, WARM_UP = 5_200, 64, 100
RATE, MATRIX_RATE = 1.0e-3, 3.0e-3  # of AdamW (vectors, embeddings, the UNet's two ends) and of Muon (the other matrices)
EMA = 0.998  # the weights shipped are a moving average of those trained
CORPUS = 24_000  # scenes
DROPPED = 0.1  # share of captions left empty, for classifier-free guidance
CODE_STEPS, DECODER_STEPS, CODE_BATCH, CODE_RATE = 2_400, 1_000, 8, 2.0e-3  # of the autoencoder
CHANNELS, GRID, WIDTH, LENGTH = 16, 8, 128, 20  # of latents, of their sides, of the text encoder, of captions in tokens
SAMPLING_STEPS, GUIDANCE = 25, 2.5

# --- parts ------------------------------------------------------------------------------------------------------------


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over the captions' words: each is one token, other words fall into letters.

    The merges are found here, most frequent pair first and ties by spelling, until every word is whole: the tokenizers
    library breaks ties by chance.
    """
    letters, end = sorted(pre_tokenizers.ByteLevel.alphabet()), "</w>"
    spelled = [[*word[:-1], word[-1] + end] for word in [*scenes.vocabulary(), ","]]
    merges: list[Any] = []  # of pairs
    while pairs := collections.Counter(pair for word in spelled for pair in itertools.pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in spelled:
            for i in range(len(word) - 2, -1, -1):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(x + end for x in letters), *map("".join, merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    """Two layers x 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            initializer_factor=1.0,
        )
    )


def autoencoder() -> AutoencoderKL:
    """32 x 32 x 3 to 8 x 8 x 16; no attention, since patterns are local."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=scenes.SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def denoiser() -> UNet2DConditionModel:
    """Channels (64, 128), with attention at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=GRID,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads, in spite of its name: 32 dimensions each
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Squared-cosine noise, velocity prediction, no clipping (latents have no bounds); sampling starts at pure noise."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # without effect here, but diffusers warns of any other
    )


# --- autoencoder ------------------------------------------------------------------------------------------------------


def to_input(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Pictures (count, 32, 32, 3) of bytes as a tensor (count, 3, 32, 32) in -1 ... 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def train_autoencoder(pictures: NDArray[np.uint8], steps: int, generator: torch.Generator) -> AutoencoderKL:
    """Fit an autoencoder to pictures: absolute and squared error, and a very small pull towards a normal latent."""
    model = autoencoder().train()
    into: Any = model.quant_conv
    with torch.no_grad():  # begin with hardly any noise on the latents: with the usual much, colours come late
        into.weight[CHANNELS:] = 0
        into.bias[CHANNELS:] = -6
    optimizer = torch.optim.AdamW(model.parameters(), lr=CODE_RATE, betas=(0.9, 0.99))
    for step in range(steps):
        rate = CODE_RATE * min(1.0, (step + 1) / 30, max(0.02, 1.7 * (1 - step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.randint(len(pictures), (CODE_BATCH,), generator=generator)
        batch = to_input(pictures[chosen.numpy()])
        posterior = model.encode(batch).latent_dist
        error = model.decode(posterior.sample(generator=generator)).sample - batch
        loss = error.abs().mean() + error.square().mean() + 1e-4 * posterior.kl().mean() / (CHANNELS * GRID * GRID)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, steps // 10) == 0:
            print(f"autoencoder {step}/{steps}: {127.5 * float(error.detach().abs().mean()):.1f} of 255 off", flush=True)
    return model.eval()


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Latents (count, 16, 8, 8) of pictures: the posteriors' means."""
    parts = [model.encode(to_input(pictures[i : i + 256])).latent_dist.mean for i in range(0, len(pictures), 256)]
    return torch.cat(parts)


@torch.no_grad()
def standardise(model: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Fold the latents' means and deviations by channel into the autoencoder; returns the latents it would now give."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into: Any = model.quant_conv
    out_of: Any = model.post_quant_conv
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= deviation[None, :, None, None]
    into.weight[:CHANNELS] /= deviation[:, None, None, None]
    into.bias[:CHANNELS] = (into.bias[:CHANNELS] - mean) / deviation
    into.bias[CHANNELS:] -= 2 * deviation.log()  # the posteriors' log variances
    return (latents - mean[:, None, None]) / deviation[:, None, None]


def finish_decoder(
    model: AutoencoderKL, latents: torch.Tensor, pictures: NDArray[np.uint8], steps: int, generator: torch.Generator
) -> AutoencoderKL:
    """Fit the decoder for longer, to latents (count, 16, 8, 8) with a little noise, as those of the UNet have.

    The encoder stays as it is, and with it what the UNet has learned: this can come last.
    """
    model.train()
    trained = [*model.decoder.parameters(), *cast(nn.Module, model.post_quant_conv).parameters()]
    optimizer = torch.optim.AdamW(trained, lr=CODE_RATE, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = CODE_RATE * min(1.0, (step + 1) / 30, max(0.02, 1.7 * (1 - step / steps)))
        chosen = torch.randint(len(pictures), (CODE_BATCH,), generator=generator)
        noise = torch.randn(CODE_BATCH, CHANNELS, GRID, GRID, generator=generator)
        share = 0.15 * torch.rand(CODE_BATCH, 1, 1, 1, generator=generator)
        error = model.decode(latents[chosen] + share * noise).sample - to_input(pictures[chosen.numpy()])
        loss = error.abs().mean() + error.square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, steps // 10) == 0:
            print(f"decoder {step}/{steps}: {127.5 * float(error.detach().abs().mean()):.1f} of 255 off", flush=True)
    return model.eval()


# --- drawing ----------------------------------------------------------------------------------------------------------


def load(folder: Path | str) -> StableDiffusionPipeline:
    """The pipeline of a folder, in float32, on the CPU, silent."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    seed: int = 0,
    steps: int = SAMPLING_STEPS,
    guidance: float = GUIDANCE,
    batch: int = 64,
) -> NDArray[np.uint8]:
    """A picture for each prompt, of shape (prompts, 32, 32, 3); each has its own noise, whatever is drawn beside it."""
    pictures = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        drawn = pipeline(
            some,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(100_003 * seed + start + i) for i in range(len(some))],
            output_type="np",
        ).images
        pictures.append(np.clip(np.round(drawn * 255), 0, 255).astype(np.uint8))
    return np.concatenate(pictures)


def scores(pipeline: StableDiffusionPipeline, *, seed: int = 1, count: int = 200, held_out: bool = True) -> dict[str, float]:
    """Shares of samples in which the shipped reader finds what the caption says (captions are complete).

    The reader has learned from rendered scenes only. `held_out`: captions of combinations that training had none of,
    otherwise captions of training's own combinations.
    """
    from ether import foundation
    from ether.foundation import image_judges

    if held_out:
        wanted = scenes.held_out_scenes(seed, count)
    else:
        stream = scenes.scenes(seed + 1_000_000, things=0.0)
        wanted = [next(stream) for _ in range(count)]
    pictures = draw(pipeline, [scenes.describe(scene) for scene in wanted], seed=seed)
    reader = image_judges.load_reader(foundation.path("image-judges") / "reader")
    return image_judges.agreement(reader, pictures, wanted)


# --- training ---------------------------------------------------------------------------------------------------------


class Trainer:
    """The UNet and the text encoder, their optimisers, their moving average, and where the random numbers stand.

    Muon steps along the nearest orthogonal matrix to a weight's momentum, so that rare directions (which word makes
    which shape) are learned as fast as frequent ones: here it needs half of AdamW's time. A convolution is a matrix of
    output channels by all the rest.
    """

    def __init__(self, words: CLIPTokenizer, steps: int, generator: torch.Generator) -> None:
        self.unet, self.text = denoiser().train(), text_encoder(words).train()
        self.named = {
            f"{part}.{name}": parameter
            for part, model in (("unet", self.unet), ("text", self.text))
            for name, parameter in model.named_parameters()
        }
        self.average = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        apart = ("embedding", "conv_in", "conv_out")
        self.matrices = {  # of two dimensions, in the memory of the parameters
            name: nn.Parameter(parameter.detach().view(len(parameter), -1))
            for name, parameter in self.named.items()
            if parameter.ndim > 1 and not any(word in name for word in apart)
        }
        others = [parameter for name, parameter in self.named.items() if name not in self.matrices]
        self.muon = torch.optim.Muon(
            self.matrices.values(), lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.99), weight_decay=0.01, foreach=True)
        self.step, self.steps, self.generator = 0, steps, generator
        products = scheduler().alphas_cumprod
        self.signal, self.noise = products.sqrt(), (1 - products).sqrt()

    def _states(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """What the optimisers keep for each parameter."""
        for name, parameter in self.named.items():
            matrix = self.matrices.get(name)
            yield name, self.adam.state[parameter] if matrix is None else self.muon.state[matrix]

    def train(self, latents: torch.Tensor, tokens: torch.Tensor) -> float:
        """One step on a batch: latents (batch, 16, 8, 8), tokens (batch, 20); returns the loss."""
        share = min(1.0, (self.step + 1) / WARM_UP, 2 * (self.steps - self.step) / self.steps)
        for optimizer, rate in ((self.adam, RATE), (self.muon, MATRIX_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        times = torch.multinomial(self.noise**2, len(latents), replacement=True, generator=self.generator)
        noise = torch.randn(latents.shape, generator=self.generator)
        a, s = (table[times][:, None, None, None] for table in (self.signal, self.noise))
        context = self.text(tokens).last_hidden_state
        velocity = self.unet(a * latents + s * noise, times, context).sample
        loss = (velocity - (a * noise - s * latents)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        for name, matrix in self.matrices.items():
            gradient = self.named[name].grad
            matrix.grad = None if gradient is None else gradient.view(matrix.shape)
        self.adam.step()
        self.muon.step()
        for parameter in self.named.values():
            parameter.grad = None
        self.step += 1
        keep = min(EMA, self.step / (self.step + 9))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.named.values()], 1 - keep)
        return float(loss.detach())

    def averaged(self, words: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """New models with the averaged weights."""
        unet, text = denoiser().eval(), text_encoder(words).eval()
        for part, model in (("unet", unet), ("text", text)):
            own = {n.removeprefix(f"{part}."): t for n, t in self.average.items() if n.startswith(f"{part}.")}
            model.load_state_dict(own, strict=False)  # buffers, such as position numbers, are no parameters
        return unet, text

    def save(self, file: Path) -> None:
        """Write everything that training goes on from."""
        tensors = {"step": torch.tensor(self.step), "generator": self.generator.get_state()}
        for name, state in self._states():
            tensors[f"value.{name}"], tensors[f"average.{name}"] = self.named[name].detach(), self.average[name]
            for key, value in state.items():
                tensors[f"state/{key}.{name}"] = value
        with results.atomic(file) as partial:
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, partial)

    @torch.no_grad()
    def resume(self, file: Path) -> None:
        """Go on from what `save` wrote."""
        tensors = load_file(file)
        self.step = int(tensors["step"])
        self.generator.set_state(tensors["generator"])
        for name, state in self._states():
            self.named[name].copy_(tensors[f"value.{name}"])
            self.average[name].copy_(tensors[f"average.{name}"])
            state.update(
                {
                    key.removeprefix("state/").removesuffix(f".{name}"): value
                    for key, value in tensors.items()
                    if key.startswith("state/") and key.endswith(f".{name}")
                }
            )


def tokens_of(words: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token numbers of captions, of shape (captions, 20), padded as the pipeline pads."""
    encoded = words(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return encoded["input_ids"]


def save_pipeline(
    out: Path, unet: UNet2DConditionModel, text: CLIPTextModel, code: AutoencoderKL, words: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Write a pipeline's folder, UNet and autoencoder in half precision, and read it again in single precision."""
    parts: dict[str, Any] = {
        "unet": copy.deepcopy(unet).half(),
        "vae": copy.deepcopy(code).half(),
        "text_encoder": text,
        "tokenizer": words,
        "scheduler": scheduler(),
    }
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **absent).save_pretrained(out)
    return load(out)


def prepared(words: CLIPTokenizer, seed: int, steps: int) -> tuple[AutoencoderKL, torch.Tensor, torch.Tensor]:
    """The autoencoder, the corpus's latents (scenes, 16, 8, 8) and its captions' tokens (scenes, 20)."""
    count = min(CORPUS, BATCH * steps)  # a few scenes do for a few steps
    pictures, captions, _ = scenes.corpus(seed, count)
    generator = torch.Generator().manual_seed(seed)
    code = train_autoencoder(pictures, min(CODE_STEPS, steps), generator)
    latents = standardise(code, encode(code, pictures)).contiguous()  # as they come from disk: another layout, other rounding
    return code, latents, tokens_of(words, captions)


def pretrain(
    out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1, work: Path | None = None, every: float = 240.0
) -> None:
    """Pretrain the autoencoder, then UNet and text encoder, and write the pipeline and its card to the folder `out`.

    Muon and AdamW with a short warm-up, and a linear decay over the second half. The same seed, steps and threads give the same
    weights on one kind of CPU.

    Args:
        work: a folder for what an interrupted run goes on from, written every so many seconds, with the pipeline as it
            is by then in ``work/pipeline``; it changes nothing in the outcome.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    words = tokenizer()
    code, spent = autoencoder().eval(), 0.0
    if work and (work / "prepared.safetensors").is_file():
        stored = load_file(work / "prepared.safetensors")
        latents, tokens = stored.pop("latents"), stored.pop("tokens")
        code.load_state_dict(stored)
    else:
        code, latents, tokens = prepared(words, seed, steps)
        if work:
            with results.atomic(work / "prepared.safetensors") as partial:
                save_file({**code.state_dict(), "latents": latents, "tokens": tokens}, partial)
    torch.manual_seed(seed + 1)  # the initial weights do not depend on what came before
    trainer = Trainer(words, steps, torch.Generator().manual_seed(seed + 1))
    if work and (work / "state.safetensors").is_file():
        trainer.resume(work / "state.safetensors")
        spent = float((work / "seconds.txt").read_text())
    empty, saved, losses = tokens_of(words, [""]), time.monotonic(), []
    while trainer.step < steps:
        chosen = torch.randint(len(latents), (BATCH,), generator=trainer.generator)
        dropped = torch.rand(BATCH, 1, generator=trainer.generator) < DROPPED
        losses.append(trainer.train(latents[chosen], torch.where(dropped, empty, tokens[chosen])))
        if trainer.step % max(1, min(steps // 20, 100)) == 0:
            minutes = (spent + time.monotonic() - began) / 60
            print(f"step {trainer.step}/{steps}: loss {np.mean(losses):.4f}, {minutes:.1f} min", flush=True)
            losses = []
        if work and time.monotonic() - saved > every:
            trainer.save(work / "state.safetensors")
            results.write_text(str(spent + time.monotonic() - began), work / "seconds.txt")
            save_pipeline(work / "pipeline", *trainer.averaged(words), code, words)
            saved = time.monotonic()
    if work and (work / "decoder.safetensors").is_file():
        code.load_state_dict(load_file(work / "decoder.safetensors"))
    else:
        pictures, _, _ = scenes.corpus(seed, len(latents))
        finish_decoder(code, latents, pictures, min(DECODER_STEPS, steps), torch.Generator().manual_seed(seed + 2))
    out.mkdir(parents=True, exist_ok=True)
    (out / CARD).unlink(missing_ok=True)  # a folder without a card is not a finished model
    unet, text = trainer.averaged(words)
    pipeline = save_pipeline(out, unet, text, code, words)
    minutes = (spent + time.monotonic() - began) / 60
    write_card(out, pipeline, seed=seed, steps=steps, threads=threads, minutes=minutes)


def reconstruction(pipeline: StableDiffusionPipeline, seed: int, count: int = 256) -> float:
    """Mean absolute error of the autoencoder on fresh scenes, of 255."""
    pictures, _, _ = scenes.corpus(seed, count)
    with torch.no_grad():
        back = pipeline.vae.decode(encode(pipeline.vae, pictures)).sample.clamp(-1, 1)
    return float((back - to_input(pictures)).abs().mean()) * 127.5


def write_card(
    out: Path, pipeline: StableDiffusionPipeline, *, seed: int, steps: int, threads: int, minutes: float, count: int = 200
) -> None:
    """Score a finished folder and describe it in its card."""
    parts = {"unet": pipeline.unet, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder}
    files = sorted(file for file in out.rglob("*") if file.is_file() and not file.name.startswith("."))
    found: dict[str, Any] = {
        f"{attribute}, {which}": value
        for which, held_out in (("held-out combinations", True), ("training's combinations", False))
        for attribute, value in scores(pipeline, seed=seed + 1, count=count, held_out=held_out).items()
    }
    card = {
        "name": "text-to-image",
        "what": "StableDiffusionPipeline that draws the world of scenes (ether.worlds.scenes) from captions",
        "command": f"python -m ether.foundation text-to-image --out FOLDER --steps {steps} --seed {seed} --threads {threads}",
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "sampling": {"scheduler": "DDIMScheduler", "steps": SAMPLING_STEPS, "guidance": GUIDANCE},
        "precision": "unet and vae are stored in float16 and loaded in float32; text_encoder is stored in float32",
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in parts.items()},
        "hardware": f"{os.cpu_count()}-core x86-64 CPU, {'one thread' if threads == 1 else f'{threads} threads'}",
        "minutes": round(minutes, 1),
        "versions": {**json.loads(results.versions()), "diffusers": _version("diffusers")},
        "scores": found | {"autoencoder's mean error of 255": round(reconstruction(pipeline, seed + 1), 2)},
        "licence": "Made from generated pictures and captions only; under the licence of this package.",
        "sha256": {str(file.relative_to(out)): results.file_digest(file) for file in files if file.name != CARD},
    }
    results.write_text(json.dumps(card, indent=2) + "\n", out / CARD)
    print(f"{out}: {card['scores']}", flush=True)


@functools.cache
def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)
