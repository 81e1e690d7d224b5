"""The loss of DreamBooth (Ruiz et al. 2023), as a module for transformers' Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from ether.diffusion.sampler import generator
from ether.errors import one_of
from ether.foundation.times import TIMES, time_probabilities


class SampleNumbers(Dataset):
    """A data set of the numbers 0, 1, 2, ...; `DreamBoothLoss` derives image, noise and timestep from each number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index}


class DreamBoothLoss(nn.Module):
    """The denoising loss on the subject's images and, with prior preservation, on images of its class.

    Image, noise and timestep depend only on the run's seed and the sample's number, so that a resumed run repeats them.

    Args:
        model: the adapted UNet.
        scheduler: a ``DDPMScheduler`` with the pipeline's noise schedule; its ``prediction_type`` defines the target.
        seed: seed of the run.
        instances: ((N, C, h, w) latents, (L, D) prompt embedding).
        prior: the same for the images of the class, or None.
        weight: weight of the prior loss.
        times: the distribution of the time steps, a kind of `ether.foundation.times.time_probabilities`.

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
        super().__init__()
        if times not in TIMES:
            raise one_of("distribution of time steps", times, TIMES, "subject.times")
        self.model = model
        self.scheduler, self.seed, self.weight = scheduler, seed, weight
        self.cumulative = None if times == "uniform" else time_probabilities(scheduler.alphas_cumprod, times).cumsum(0)
        self.parts = [("instance", *instances)] + ([("prior", *prior)] if prior else [])  # no buffers: not saved

    def _time(self, random: torch.Generator) -> int:
        """A time step drawn with one number of the generator."""
        if self.cumulative is None:
            return int(torch.randint(self.scheduler.config.num_train_timesteps, (), generator=random))
        drawn = torch.rand((), generator=random, dtype=torch.float64) * self.cumulative[-1]  # the sum is 1 but for rounding
        return min(int(torch.searchsorted(self.cumulative, drawn, right=True)), len(self.cumulative) - 1)

    def _batch(self, name: str, latents: torch.Tensor, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen, noise, times = [], [], []
        for number in numbers:
            epoch, index = divmod(number, len(latents))
            order = torch.randperm(len(latents), generator=generator(self.seed, name, "epoch", epoch))
            chosen.append(int(order[index]))
            random = generator(self.seed, name, "draw", number)
            times.append(self._time(random))
            noise.append(torch.randn(latents.shape[1:], generator=random))
        device = latents.device
        return latents[chosen], torch.stack(noise).to(device), torch.tensor(times, device=device)

    def forward(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """The mean loss of a batch, under ``loss``. index: (B,), sample numbers.

        Raises:
            ConfigurationError: unknown ``prediction_type`` of the scheduler.
        """
        numbers = index.tolist()
        batches = [(*self._batch(name, latents, numbers), embedding) for name, latents, embedding in self.parts]
        clean, noise, times = (torch.cat([part[i] for part in batches]) for i in range(3))
        text = torch.cat([embedding.expand(len(numbers), -1, -1) for *_, embedding in batches])
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
