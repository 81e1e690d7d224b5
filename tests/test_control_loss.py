"""The loss with a control signal, against its formula; examples that are kept or encoded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from ether.diffusion.control_examples import EncodedExamples
from ether.diffusion.losses import ControlLoss, DreamBoothLoss, SampleNumbers
from ether.diffusion.sampler import Sampler
from ether.diffusion.signal import ControlledUNet, new_encoder, optimizer
from ether.errors import ConfigurationError
from ether.standins import diffusion as tiny
from ether.training import train, training_arguments

CHANNELS = (4, 8, 8)  # reduces the side to a quarter, as the VAE of the stand-in does
SAMPLING = {"steps": 2, "guidance": 2.0, "batch": 3, "seed": 0}
HYPER = {
    "learning_rate": 1e-2, "batch_size": 2, "accumulation": 1, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0,
    "max_grad_norm": 1.0, "precision": "float32",
}  # fmt: skip


def examples(count: int = 5, side: int = 32) -> list[dict[str, Any]]:
    """Examples of random pictures and hints."""
    random = torch.Generator().manual_seed(0)
    shape = (3, side, side)
    return [
        {
            "image": torch.randint(256, shape, generator=random, dtype=torch.uint8),
            "hint": torch.randint(256, shape, generator=random, dtype=torch.uint8),
            "caption": f"picture {number % 2}",
        }
        for number in range(count)
    ]


def sampler(prediction: str = "epsilon") -> Sampler:
    pipeline = tiny.pipeline(prediction=prediction)
    pipeline.unet.requires_grad_(False)
    return Sampler(pipeline, SAMPLING, 32, "cpu")


def loss(made: Sampler, seed: int = 0, **options: Any) -> ControlLoss:
    encoded = EncodedExamples(examples(), made)
    controlled = ControlledUNet(made.pipeline.unet, new_encoder(made.pipeline.unet, CHANNELS))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        controlled.encoder.conv_out.weight.copy_(torch.randn(controlled.encoder.conv_out.weight.shape, generator=random) * 0.3)
    scheduler = DDPMScheduler.from_config(made.pipeline.scheduler.config)
    return ControlLoss(controlled, scheduler, seed, encoded.batch, len(encoded), encoded.shape, **options)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_the_mean_squared_error_of_each_sample_with_its_own_hint(prediction: str) -> None:
    made = sampler(prediction)
    module, given = loss(made), examples()
    found = float(module(torch.tensor([3, 6]))["loss"].detach())
    chosen, noise, times = module.draw("control", 5, (4, 8, 8), [3, 6])
    expected = []
    for index, e, t in zip(chosen, noise, times, strict=True):  # one sample at a time, from the definition
        level = made.pipeline.scheduler.alphas_cumprod[t]
        clean = made.latents(given[index]["image"][None].float() / 255)[0]
        noisy = level.sqrt() * clean + (1 - level).sqrt() * e
        target = {"epsilon": e, "sample": clean, "v_prediction": level.sqrt() * e - (1 - level).sqrt() * clean}[prediction]
        text, hint = made.encode([given[index]["caption"]]), given[index]["hint"][None].float() / 255
        with torch.no_grad():
            predicted = module.model(noisy[None], t[None], hint, encoder_hidden_states=text, return_dict=False)[0][0]
        expected.append(float((predicted - target).square().mean()))
    assert found == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_each_epoch_has_every_example_once() -> None:
    module = loss(sampler())
    for epoch in range(3):
        chosen, *_ = module.draw("control", 5, (4, 8, 8), range(5 * epoch, 5 * epoch + 5))
        assert sorted(chosen) == list(range(5))


def test_examples_do_not_depend_on_whether_they_are_kept() -> None:
    made = sampler()
    kept, again = EncodedExamples(examples(), made), EncodedExamples(examples(), made, kept=0)
    for a, b in zip(kept.batch([4, 0, 4]), again.batch([4, 0, 4]), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert kept.shape == (4, 8, 8) and len(kept) == 5
    assert kept.batch([2])[2].max() <= 1


def test_dreambooth_draws_the_same_samples() -> None:
    """The two losses share the draws: equal seeds and names give equal noise and times."""
    made = sampler()
    latents, text = torch.zeros(5, 4, 8, 8), torch.zeros(7, 16)
    scheduler = DDPMScheduler.from_config(made.pipeline.scheduler.config)
    other = DreamBoothLoss(made.pipeline.unet, scheduler, 0, (latents, text), None, 1.0)
    for a, b in zip(other.draw("x", 5, (4, 8, 8), [2, 9]), loss(made).draw("x", 5, (4, 8, 8), [2, 9]), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_unknown_distribution_of_times() -> None:
    with pytest.raises(ConfigurationError, match="control.times"):
        loss(sampler(), times="early")


def test_training_lowers_the_loss_and_leaves_the_frozen_weights(tmp_path: Path) -> None:
    made = sampler()
    module = loss(made)
    before = {name: value.clone() for name, value in made.pipeline.unet.state_dict().items()}
    numbers = torch.arange(40)
    with torch.no_grad():
        first = float(module(numbers)["loss"])
    arguments = training_arguments(
        HYPER, 30, 0, tmp_path, "cpu", train_sampling_strategy="sequential", remove_unused_columns=False, label_names=[]
    )
    trained = train(
        module, arguments, adapted=made.pipeline.unet, optimizers=(optimizer(module, arguments, 1e-2), None),
        train_dataset=SampleNumbers(60),
    )  # fmt: skip
    assert trained.status == "finished" and trained.steps == 30
    with torch.no_grad():
        assert float(module(numbers)["loss"]) < first
    assert all(torch.equal(value, before[name]) for name, value in made.pipeline.unet.state_dict().items())
