"""The denoising losses, as modules for transformers' Trainer: DreamBooth's (Ruiz et al. 2023), and that of a control signal.

`DenoisingLoss` has what both share: which image, noise and time step a sample has, and the target of the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from ether.diffusion.sampler import generator
from ether.errors import one_of
from ether.foundation.times import TIMES, time_probabilities


class SampleNumbers(Dataset):
    """A data set of the numbers `start`, `start` + 1, ...; a `DenoisingLoss` derives image, noise and time from each."""

    def __init__(self, count: int, start: int = 0) -> None:
        self.count, self.start = count, start

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": self.start + index}


class DenoisingLoss(nn.Module):
    """The squared error of a UNet's prediction for noisy latents.

    Image, noise and time step depend only on the run's seed and the sample's number, so that a resumed run repeats them.

    Args:
        model: predicts the target.
        scheduler: a ``DDPMScheduler`` with the pipeline's noise schedule; its ``prediction_type`` defines the target.
        seed: seed of the run.
        times: the distribution of the time steps, a kind of `ether.foundation.times.time_probabilities`.
        setting: the setting of `times`, for error messages.

    Raises:
        ConfigurationError: unknown ``times``.
    """

    def __init__(self, model: nn.Module, scheduler: Any, seed: int, times: str, setting: str) -> None:
        super().__init__()
        if times not in TIMES:
            raise one_of("distribution of time steps", times, TIMES, setting)
        self.model = model
        self.scheduler, self.seed = scheduler, seed
        self.cumulative = None if times == "uniform" else time_probabilities(scheduler.alphas_cumprod, times).cumsum(0)

    def _time(self, random: torch.Generator) -> int:
        """A time step drawn with one number of the generator."""
        if self.cumulative is None:
            return int(torch.randint(self.scheduler.config.num_train_timesteps, (), generator=random))
        drawn = torch.rand((), generator=random, dtype=torch.float64) * self.cumulative[-1]  # the sum is 1 but for rounding
        return min(int(torch.searchsorted(self.cumulative, drawn, right=True)), len(self.cumulative) - 1)

    def draw(
        self, name: str, count: int, shape: Sequence[int], numbers: Sequence[int]
    ) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        """The samples of the given numbers: images, noise and time steps. Each epoch has all images in another order.

        Args:
            name: of the data, which has its own random numbers.
            count: number of images.
            shape: of a latent.
            numbers: B sample numbers.

        Returns:
            B indices of images, noise (B, *shape) and time steps (B,), on the CPU.
        """
        chosen, noise, times = [], [], []
        for number in numbers:
            epoch, index = divmod(number, count)
            order = torch.randperm(count, generator=generator(self.seed, name, "epoch", epoch))
            chosen.append(int(order[index]))
            random = generator(self.seed, name, "draw", number)
            times.append(self._time(random))
            noise.append(torch.randn(tuple(shape), generator=random))
        return chosen, torch.stack(noise), torch.tensor(times)

    def errors(self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, *inputs: Any, **options: Any) -> torch.Tensor:
        """The mean squared error of each sample, (B,).

        Args:
            clean: (B, C, h, w), latents of images.
            noise: (B, C, h, w).
            times: (B,).
            inputs, options: further arguments of the model.

        Raises:
            ConfigurationError: unknown ``prediction_type`` of the scheduler.
        """
        noisy = self.scheduler.add_noise(clean, noise, times)
        predicted = self.model(noisy, times, *inputs, return_dict=False, **options)[0]
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            target = noise
        elif kind == "v_prediction":
            target = self.scheduler.get_velocity(clean, noise, times)
        elif kind == "sample":
            target = clean
        else:
            raise one_of("prediction type", kind, ("epsilon", "v_prediction", "sample"), "the pipeline's scheduler")
        return functional.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)


class DreamBoothLoss(DenoisingLoss):
    """The denoising loss on the subject's images and, with prior preservation, on images of its class.

    Args:
        model: the adapted UNet.
        scheduler, seed, times: see `DenoisingLoss`.
        instances: ((N, C, h, w) latents, (L, D) prompt embedding).
        prior: the same for the images of the class, or None.
        weight: weight of the prior loss.

    Raises:
        ConfigurationError: unknown ``times``.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: Any,
        seed: int,
        instances: tuple[torch.Tensor, torch.Tensor],
        prior: tuple[torch.Tensor, torch.Tensor] | None,
        weight: float,
        times: str = "uniform",
    ) -> None:
        super().__init__(model, scheduler, seed, times, "subject.times")
        self.weight = weight
        self.parts = [("instance", *instances)] + ([("prior", *prior)] if prior else [])  # no buffers: not saved

    def _batch(self, name: str, latents: torch.Tensor, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen, noise, times = self.draw(name, len(latents), latents.shape[1:], numbers)
        return latents[chosen], noise.to(latents.device), times.to(latents.device)

    def forward(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """The mean loss of a batch, under ``loss``. index: (B,), sample numbers.

        Raises:
            ConfigurationError: unknown ``prediction_type`` of the scheduler.
        """
        numbers = index.tolist()
        batches = [(*self._batch(name, latents, numbers), embedding) for name, latents, embedding in self.parts]
        clean, noise, times = (torch.cat([part[i] for part in batches]) for i in range(3))
        text = torch.cat([embedding.expand(len(numbers), -1, -1) for *_, embedding in batches])
        parts = self.errors(clean, noise, times, encoder_hidden_states=text).split(len(numbers))
        return {"loss": parts[0].mean() + (self.weight * parts[1].mean() if len(parts) > 1 else 0)}


# Indices of examples -> their latents (B, C, h, w), prompt embeddings (B, L, D) and hints (B, 3, H, W) in [0, 1].
Batch = Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class ControlLoss(DenoisingLoss):
    """The denoising loss of a UNet with a control signal; each sample has its own prompt and hint.

    Args:
        model: a `ether.diffusion.signal.ControlledUNet`.
        scheduler, seed, times: see `DenoisingLoss`.
        examples: gives the examples of a batch.
        count: number of examples.
        shape: of a latent.

    Raises:
        ConfigurationError: unknown ``times``.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: Any,
        seed: int,
        examples: Batch,
        count: int,
        shape: Sequence[int],
        times: str = "uniform",
    ) -> None:
        super().__init__(model, scheduler, seed, times, "control.times")
        self.examples, self.count, self.shape = examples, count, tuple(shape)

    def forward(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """The mean loss of a batch, under ``loss``. index: (B,), sample numbers.

        Raises:
            ConfigurationError: unknown ``prediction_type`` of the scheduler, or an encoded hint of another size than the latents.
        """
        chosen, noise, times = self.draw("control", self.count, self.shape, index.tolist())
        clean, text, hints = self.examples(chosen)
        noise, times = noise.to(clean.device), times.to(clean.device)
        return {"loss": self.errors(clean, noise, times, hints, encoder_hidden_states=text).mean()}
