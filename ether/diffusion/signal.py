"""The control signal of controllable generation (Sec. 5.1.2, App. C.2): ControlNet's hint encoder beside an adapted UNet.

The encoder turns an image, the hint, into a feature map of the size of the latents. The paper follows official OFT, whose
``ControlledUnetModel`` adds this map once, to the output of the first of the UNet's input blocks. In the original code of Stable
Diffusion, that block consists of the first convolution alone, which is ``conv_in`` of diffusers' ``UNet2DConditionModel``. So
the map is added to the output of ``conv_in``, as ``ControlNetModel`` of diffusers does in its copy of the UNet. The sum is the
input of the first down block, and through the first skip connection also of the last up block.

The encoder is diffusers' ``ControlNetConditioningEmbedding``: 3 x 3 convolutions with SiLU between them, the last of which is
initialised with zeros. With the paper's `BLOCK_CHANNELS` it has 8 convolutions and reduces the side to an eighth::

    3 -> 16 -> 16 -> 32 (stride 2) -> 32 -> 96 (stride 2) -> 96 -> 256 (stride 2) -> channels of `conv_in`

Training a UNet with its own learning rate for the encoder::

    controlled = ControlledUNet(adapted, new_encoder(adapted, seed=0))
    predicted = controlled(noisy, times, hint, encoder_hidden_states=text, return_dict=False)[0]
    train(loss, arguments, optimizers=(optimizer(controlled, arguments, cap=1e-4), None), ...)
    images = controlled_pictures(sampler, controlled, texts, names, hints)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ether.diffusion.sampler import Sampler
from ether.errors import ConfigurationError, MissingResourceError
from ether.results import atomic

__all__ = [
    "BLOCK_CHANNELS", "ControlledUNet", "controlled_pictures", "load_encoder", "new_encoder", "optimizer", "save_encoder",
]  # fmt: skip

BLOCK_CHANNELS = (16, 32, 96, 256)  # of the paper; every number after the first one halves the side


# --- the encoder -----------------------------------------------------------------------------------------------


def _first_convolution(unet: nn.Module) -> nn.Module:
    """``conv_in`` of a UNet, or PEFT's layer in its place, also if the UNet is wrapped in a PEFT model."""
    found = [module for name, module in unet.named_modules() if name == "conv_in" or name.endswith(".conv_in")]
    if len(found) != 1:
        raise ConfigurationError(
            f"A signal is added to the output of a UNet's `conv_in`, but {type(unet).__name__} has {len(found)} of this name."
        )
    return found[0]


def new_encoder(
    unet: nn.Module, block_channels: Sequence[int] = BLOCK_CHANNELS, *, seed: int = 0
) -> ControlNetConditioningEmbedding:
    """A new encoder for hints of three channels, in single precision on the CPU; its output is 0 for every hint.

    Args:
        unet: a ``UNet2DConditionModel``, adapted or not; determines the number of output channels.
        block_channels: as described above; k + 1 numbers reduce the side of a hint to 1 / 2^k.
        seed: of the initial weights; the global random state is not changed.

    Raises:
        ConfigurationError: the model has no ``conv_in``, or there are no block channels.
    """
    if not block_channels or min(block_channels) < 1:
        raise ConfigurationError(f"The signal encoder needs at least one number of channels, all positive, not {block_channels}.")
    convolution: Any = _first_convolution(unet)
    channels = int(getattr(convolution, "base_layer", convolution).out_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ControlNetConditioningEmbedding(channels, 3, tuple(block_channels))


def save_encoder(encoder: ControlNetConditioningEmbedding, file: Path) -> None:
    """Writes an encoder as safetensors; the numbers of its channels are in the metadata."""
    blocks = [encoder.conv_in.out_channels, *(block.out_channels for block in list(encoder.blocks)[1::2])]
    sizes = {"channels": encoder.conv_out.out_channels, "hint_channels": encoder.conv_in.in_channels, "block_channels": blocks}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    with atomic(file) as temporary:
        save_file(tensors, temporary, metadata={"signal_encoder": json.dumps(sizes)})


def load_encoder(file: Path) -> ControlNetConditioningEmbedding:
    """The encoder of a file that `save_encoder` wrote, on the CPU.

    Raises:
        MissingResourceError: there is no such file, or it contains something else.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            sizes = json.loads((opened.metadata() or {})["signal_encoder"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        encoder = ControlNetConditioningEmbedding(sizes["channels"], sizes["hint_channels"], tuple(sizes["block_channels"]))
        encoder = encoder.to(next(iter(tensors.values())).dtype)
        encoder.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise MissingResourceError(f"{file} does not contain a signal encoder: {type(error).__name__}: {error}.") from error
    return encoder


# --- the controlled UNet ---------------------------------------------------------------------------------------


class ControlledUNet(nn.Module):
    """A UNet, adapted or not, to whose first feature map the encoded hint is added.

    The signal is added by a hook on ``conv_in``, so the UNet itself and its adapter are not changed, and a pipeline that holds
    the UNet uses it within `given`. Without a hint the UNet works as before. A freshly initialised encoder adds exactly 0. The
    encoder is trained; which parameters of the UNet are, its adapter decides.

    Args:
        unet: a ``UNet2DConditionModel``, or a PEFT model around one.
        encoder: from `new_encoder` or `load_encoder`; it is moved to the UNet's device.

    Raises:
        ConfigurationError: the model has no ``conv_in``, or the encoder's output has another number of channels.
    """

    def __init__(self, unet: nn.Module, encoder: ControlNetConditioningEmbedding) -> None:
        super().__init__()
        convolution: Any = _first_convolution(unet)
        channels = getattr(convolution, "base_layer", convolution).out_channels
        if encoder.conv_out.out_channels != channels:
            raise ConfigurationError(
                f"The signal encoder has {encoder.conv_out.out_channels} output channels, and the UNet's `conv_in` {channels}."
            )
        self.unet = unet
        self.encoder = encoder.to(next(unet.parameters()).device).requires_grad_(True)
        self._signal: torch.Tensor | None = None
        self._hook = convolution.register_forward_hook(self._add)

    def _add(self, module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if self._signal is None:
            return None
        copies, rest = divmod(len(output), len(self._signal))
        if rest or self._signal.shape[1:] != output.shape[1:]:
            raise ConfigurationError(
                f"An encoded hint of shape {tuple(self._signal.shape)} cannot be added to the UNet's first feature map of shape "
                f"{tuple(output.shape)}: choose the number of `block_channels` so that their sides are equal, and give one "
                "hint for each image."
            )
        # A pipeline with guidance runs the unconditional and the conditional half of its batch together.
        return output + self._signal.to(output.dtype).repeat(copies, 1, 1, 1)

    @contextlib.contextmanager
    def given(self, hint: torch.Tensor, *, guided: bool = False) -> Iterator[None]:
        """Within this context, each call of the UNet has a hint.

        The hint is encoded once. The batch of a call is the number of hints, or a multiple of it in the order of a pipeline with
        classifier-free guidance (all unconditional inputs before all conditional ones).

        Args:
            hint: (N, 3, H, W) in [0, 1].
            guided: whether the unconditional half has no hint, so that guidance enlarges its effect. Official OFT gives the hint
                to both halves.
        """
        device = next(self.encoder.parameters()).device
        signal = self.encoder(hint.to(device, self.encoder.conv_in.weight.dtype))
        self._signal = torch.cat([torch.zeros_like(signal), signal]) if guided else signal
        try:
            yield
        finally:
            self._signal = None

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, hint: torch.Tensor, **options: Any) -> Any:
        """The UNet's output with a hint.

        Args:
            sample: (N, C, h, w), noisy latents.
            timestep: (N,).
            hint: (N, 3, H, W) in [0, 1].
            options: further arguments of the UNet: ``encoder_hidden_states``, ``return_dict``.

        Raises:
            ConfigurationError: the encoded hint has another size than the latents.
        """
        with self.given(hint):
            return self.unet(sample, timestep, **options)

    def detach(self) -> None:
        """Removes the hook from the UNet, which afterwards is what it was."""
        self._hook.remove()


def optimizer(model: nn.Module, arguments: transformers.TrainingArguments, cap: float) -> torch.optim.Optimizer:
    """The Trainer's optimiser, in which the encoder has its own learning rate.

    The encoder's learning rate is the method's, but at most `cap` (App. C.2). Both follow the schedule of `arguments`, and
    weight decay applies to the same parameters as in every other experiment.

    Args:
        model: a `ControlledUNet` or a module that contains one.
        arguments: from `ether.training.training_arguments`.
        cap: upper limit of the encoder's learning rate.

    Raises:
        ConfigurationError: the model contains no `ControlledUNet`, or nothing is trained.
    """
    encoders = [part.encoder for part in model.modules() if isinstance(part, ControlledUNet)]
    if not encoders:
        raise ConfigurationError(f"{type(model).__name__} contains no ControlledUNet, so there is no signal encoder to train.")
    encoded = {id(parameter) for encoder in encoders for parameter in encoder.parameters()}
    kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)
    # The method does not use its object, which does not exist yet.
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in encoded, name in decayed), []).append(parameter)
    if not groups:
        raise ConfigurationError("No parameter is trained, neither of the adapter nor of the signal encoder.")
    rate = float(arguments.learning_rate)
    return kind(
        [
            {
                "params": parameters,
                "lr": min(rate, cap) if encoder else rate,
                "weight_decay": arguments.weight_decay if decay else 0.0,
            }
            for (encoder, decay), parameters in groups.items()
        ],
        **options,
    )


# --- sampling --------------------------------------------------------------------------------------------------


def controlled_pictures(
    sampler: Sampler,
    controlled: ControlledUNet,
    texts: Sequence[str],
    names: Sequence[str],
    hints: torch.Tensor,
    *,
    guided: bool = False,
) -> torch.Tensor:
    """Images (N, 3, H, W), uint8, of N texts and hints, from the noise of N names (`Sampler.noise`).

    Args:
        sampler: of the pipeline whose UNet is controlled.
        controlled: the UNet with its encoder.
        texts: prompts.
        names: names of the images, which determine their noise.
        hints: (N, 3, H, W) in [0, 1], or uint8 in 0 ... 255.
        guided: see `ControlledUNet.given`.

    Raises:
        FloatingPointError: the model's output is not finite.
        ConfigurationError: the encoded hint has another size than the latents, or the numbers of texts, names and hints differ.
    """
    if not len(texts) == len(names) == len(hints):
        raise ConfigurationError(f"There are {len(texts)} texts, {len(names)} names and {len(hints)} hints: one each is needed.")
    different = list(dict.fromkeys(texts))
    embeddings, noise, size = sampler.encode(different), sampler.noise(names), sampler.batch
    parts = []
    for start in range(0, len(texts), size):
        chosen = slice(start, start + size)
        hint = hints[chosen].float() / 255 if hints.dtype == torch.uint8 else hints[chosen]
        rows = [different.index(text) for text in texts[chosen]]
        with torch.no_grad(), controlled.given(hint, guided=guided):
            parts.append(sampler.generate(embeddings[rows], noise[chosen]))
    return torch.cat(parts)
