"""The signal encoder: its size, the identity at initialisation, where its output is added, training, saving and sampling."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file
from subjects import METHODS
from torch.nn import functional

from ether.diffusion.sampler import Sampler
from ether.diffusion.signal import (
    BLOCK_CHANNELS,
    ControlledUNet,
    controlled_pictures,
    load_encoder,
    new_encoder,
    optimizer,
    save_encoder,
)
from ether.errors import ConfigurationError, MissingResourceError
from ether.measures.architectures import meta_model
from ether.methods import adapt as methods
from ether.standins import diffusion as tiny
from ether.training import train, training_arguments

CHANNELS = (4, 8, 8)  # of a small encoder that reduces the side to a quarter, as the VAE of the stand-in does


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny.pipeline()


def unet(seed: int = 0) -> Any:
    return tiny.pipeline(seed=seed).unet.requires_grad_(False)


def inputs(count: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, times, hints of 32 x 32 and embeddings for the stand-in's UNet."""
    random = torch.Generator().manual_seed(seed)
    shapes = (count, 4, 8, 8), (count, 3, 32, 32), (count, 5, 16)
    noisy, hint, text = (torch.rand(shape, generator=random) for shape in shapes)
    return noisy, torch.randint(1000, (count,), generator=random), hint, text


def run(model: Any, noisy: torch.Tensor, times: torch.Tensor, *hint: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return model(noisy, times, *hint, encoder_hidden_states=text, return_dict=False)[0]


def wake(encoder: Any, seed: int = 0) -> None:
    """Gives the last convolution random weights."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.conv_out.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)


# --- the encoder -----------------------------------------------------------------------------------------------


def test_the_papers_encoder_has_its_size_and_layers() -> None:
    with torch.device("meta"):
        encoder = new_encoder(meta_model("sd15-unet"))
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in meta_model("control-encoder").state_dict().items()}
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 1_086_480
    widths = (3, 16, 16, 32, 32, 96, 96, 256, 320)  # App. C.2: eight convolutions of 3 x 3
    assert sum(9 * a * b + b for a, b in itertools.pairwise(widths)) == 1_086_480
    strides = [module.stride[0] for module in encoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sorted(strides) == [1] * 5 + [2] * 3 and BLOCK_CHANNELS == (16, 32, 96, 256)


def test_the_encoder_is_convolutions_with_silu_between() -> None:
    encoder = new_encoder(unet(), CHANNELS, seed=3)
    wake(encoder)
    hint = inputs()[2]
    expected, layers = hint, [encoder.conv_in, *encoder.blocks, encoder.conv_out]
    for number, layer in enumerate(layers):
        stride = 2 if number in (2, 4) else 1
        expected = functional.conv2d(expected, layer.weight, layer.bias, stride=stride, padding=1)
        expected = expected * torch.sigmoid(expected) if layer is not layers[-1] else expected
    assert torch.allclose(encoder(hint), expected, atol=1e-6) and expected.shape == (2, 16, 8, 8)


def test_the_seed_alone_determines_the_initial_encoder() -> None:
    state = torch.get_rng_state()
    first, again, other = (new_encoder(unet(), CHANNELS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.conv_in.weight, again.conv_in.weight)
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)
    assert not first.conv_out.weight.any() and not first.conv_out.bias.any()


@pytest.mark.parametrize("channels", [CHANNELS, (6,)])  # one number: the hint has the size of the latents
def test_a_saved_encoder_is_loaded(channels: tuple[int, ...], tmp_path: Path) -> None:
    encoder = new_encoder(unet(), channels)
    wake(encoder)
    save_encoder(encoder, tmp_path / "signal.safetensors")
    loaded = load_encoder(tmp_path / "signal.safetensors")
    hint = inputs()[2]
    assert torch.equal(loaded(hint), encoder(hint))
    assert loaded(hint).shape == (2, 16, 32 >> (len(channels) - 1), 32 >> (len(channels) - 1))
    save_file(load_file(tmp_path / "signal.safetensors"), tmp_path / "bare.safetensors")
    for name in ("bare", "absent"):
        with pytest.raises(MissingResourceError, match="does not contain a signal encoder"):
            load_encoder(tmp_path / f"{name}.safetensors")


# --- the controlled UNet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_unchanged_at_initialisation_and_its_encoder_learns(method: str) -> None:
    noisy, times, hint, text = inputs()
    model = methods.adapt(unet(), METHODS[method], layers="attention-geglu", head=())
    before = run(model, noisy, times, text=text)
    names = [name for name, _ in model.named_parameters()]
    controlled = ControlledUNet(model, new_encoder(model, CHANNELS))
    found = run(controlled, noisy, times, hint, text=text)
    assert torch.equal(found, before)
    assert [name for name, _ in model.named_parameters()] == names
    assert methods.trainable(controlled) - methods.trainable(model) == methods.total(controlled.encoder)
    trained = [parameter for parameter in controlled.parameters() if parameter.requires_grad]
    steps = torch.optim.SGD(trained, lr=0.5)
    for step in range(2):
        steps.zero_grad()
        run(controlled, noisy, times, hint, text=text).square().mean().backward()
        reached = [bool(parameter.grad is not None and parameter.grad.any()) for parameter in controlled.encoder.parameters()]
        assert reached == [step == 1] * (len(reached) - 2) + [True, True]  # at first only the last convolution
        steps.step()
    assert not torch.equal(run(controlled, noisy, times, hint, text=text), run(controlled, noisy, times, 1 - hint, text=text))


def test_the_signal_is_added_where_diffusers_controlnet_adds_it() -> None:
    """ControlNetModel's copy of the down and middle blocks gives the same feature maps."""
    model = unet()
    net = ControlNetModel.from_unet(model, conditioning_channels=3, controlnet_conditioning_channel_order="rgb",
                                    conditioning_embedding_out_channels=CHANNELS).eval()  # fmt: skip
    wake(net.controlnet_cond_embedding)
    with torch.no_grad():
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):  # zero convolutions, here the identity
            layer.weight.copy_(torch.eye(len(layer.weight))[..., None, None])
    encoder = new_encoder(model, CHANNELS)
    encoder.load_state_dict(net.controlnet_cond_embedding.state_dict())
    controlled, seen = ControlledUNet(model, encoder), {}
    for name in ("mid_block", "up_blocks"):
        part = model.mid_block if name == "mid_block" else model.up_blocks[-1]
        part.register_forward_hook(
            lambda _, given, options, out, name=name: seen.update({name: (options, out)}), with_kwargs=True
        )
    noisy, times, hint, text = inputs()
    run(controlled, noisy, times, hint, text=text)
    skips, middle = net(noisy, times, text, hint, return_dict=False)
    assert torch.allclose(seen["mid_block"][1], middle, atol=1e-5)
    assert torch.allclose(seen["up_blocks"][0]["res_hidden_states_tuple"][0], skips[0], atol=1e-5)  # the first skip connection
    assert not torch.allclose(net(noisy, times, text, 1 - hint, return_dict=False)[1], middle, atol=1e-3)


@pytest.mark.parametrize("first", ["adapter", "signal"])
def test_the_adapter_may_also_replace_the_first_convolution(first: str) -> None:
    how = {"kind": "peft", "type": "LORA", "config": {"r": 2, "target_modules": r".*(conv_in|to_q)"}}
    noisy, times, hint, text = inputs()
    plain = unet()
    encoder = new_encoder(plain, CHANNELS)
    wake(encoder)
    expected = run(ControlledUNet(unet(), encoder), noisy, times, hint, text=text)
    if first == "adapter":
        controlled = ControlledUNet(methods.adapt(plain, how, layers="attention", head=()), encoder)
    else:
        controlled = ControlledUNet(plain, encoder)
        controlled.unet = methods.adapt(plain, how, layers="attention", head=())
    assert torch.equal(run(controlled, noisy, times, hint, text=text), expected)


def test_a_hint_holds_only_within_its_call_and_a_detached_unet_is_the_old_one() -> None:
    noisy, times, hint, text = inputs()
    model = unet()
    plain = run(model, noisy, times, text=text)
    controlled = ControlledUNet(model, new_encoder(model, CHANNELS))
    wake(controlled.encoder)
    assert not torch.equal(run(controlled, noisy, times, hint, text=text), plain)
    assert torch.equal(run(model, noisy, times, text=text), plain)
    with pytest.raises(ConfigurationError, match=r"shape \(2, 16, 4, 4\).*\(2, 16, 8, 8\)"):
        run(controlled, noisy, times, hint[..., :16, :16], text=text)
    assert torch.equal(run(model, noisy, times, text=text), plain)  # also after an error
    controlled.detach()
    assert torch.equal(run(controlled, noisy, times, hint, text=text), plain) and not model.conv_in._forward_hooks


def test_wrong_sizes_and_models_are_refused() -> None:
    model = unet()
    with pytest.raises(ConfigurationError, match="320 output channels, and the UNet's `conv_in` 16"):
        ControlledUNet(model, meta_model("control-encoder"))
    with pytest.raises(ConfigurationError, match="has 0 of this name"):
        new_encoder(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="at least one"):
        new_encoder(model, ())


# --- training --------------------------------------------------------------------------------------------------


class Loss(torch.nn.Module):
    """A loss of a controlled UNet on fixed inputs."""

    def __init__(self, model: ControlledUNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        noisy, times, hint, text = inputs()
        return {"loss": run(self.model, noisy, times, hint, text=text).square().mean()}


HYPER = {
    "batch_size": 2, "accumulation": 1, "learning_rate": 1e-2, "schedule": "linear", "warmup": 0.0, "weight_decay": 0.1,
    "max_grad_norm": 1.0, "precision": "float32", "checkpoint_steps": None,
}  # fmt: skip


def test_the_encoder_has_its_own_learning_rate(tmp_path: Path) -> None:
    arguments = training_arguments(HYPER, 4, 0, tmp_path, "cpu", logging_steps=1)
    model = methods.adapt(unet(), METHODS["ether-plus"], layers="attention-geglu", head=())
    module = Loss(ControlledUNet(model, new_encoder(model, CHANNELS)))
    made = optimizer(module, arguments, cap=1e-4)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in made.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            expected = 1e-4 if ".encoder." in name else 1e-2, 0.0 if name.endswith("bias") else 0.1
            assert rates.pop(id(parameter)) == expected, name
    assert not rates
    trained = train(module, arguments, optimizers=(made, None), train_dataset=[{"index": i} for i in range(8)])
    assert trained.steps == 4 and trained.status == "finished"
    assert trained.losses[-1][3] < trained.losses[0][3]
    assert [group["lr"] for group in made.param_groups] == [0] * len(made.param_groups)  # the schedule's end, for all groups
    assert sorted({group["initial_lr"] for group in made.param_groups}) == [1e-4, 1e-2]


def test_the_cap_is_an_upper_limit_and_the_encoder_alone_can_be_trained(tmp_path: Path) -> None:
    arguments = training_arguments({**HYPER, "learning_rate": 1e-5}, 1, 0, tmp_path, "cpu")
    model = methods.adapt(unet(), METHODS["none"], layers="attention", head=())
    controlled = ControlledUNet(model, new_encoder(model, CHANNELS))
    assert {group["lr"] for group in optimizer(controlled, arguments, cap=1e-4).param_groups} == {1e-5}
    assert methods.trainable(controlled) == methods.total(controlled.encoder)
    with pytest.raises(ConfigurationError, match="no signal encoder"):
        optimizer(model, arguments, cap=1e-4)
    controlled.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="No parameter is trained"):
        optimizer(controlled, arguments, cap=1e-4)


# --- sampling --------------------------------------------------------------------------------------------------


def test_a_pipeline_generates_with_hints(pipeline: Any) -> None:
    texts, names = ["a", "b", "a"], ["0", "1", "2"]
    hints = (torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    samplers = [Sampler(pipeline, {"steps": 3, "guidance": 2.0, "batch": batch}, 32, "cpu") for batch in (2, 3)]
    plain = samplers[0].pictures(texts, names)
    controlled = ControlledUNet(pipeline.unet, new_encoder(pipeline.unet, CHANNELS))
    assert torch.equal(controlled_pictures(samplers[0], controlled, texts, names, hints), plain)
    wake(controlled.encoder)
    found = controlled_pictures(samplers[0], controlled, texts, names, hints)
    other = controlled_pictures(samplers[1], controlled, texts, names, hints.float() / 255)
    assert (found.int() - other.int()).abs().max() <= 1 and not torch.equal(found, plain)  # whatever the batches
    swapped = controlled_pictures(samplers[0], controlled, texts, names, hints[[1, 0, 2]])
    assert not torch.equal(swapped[:2], found[:2]) and torch.equal(swapped[2], found[2])  # each image has its own hint
    guided = controlled_pictures(samplers[0], controlled, texts, names, hints, guided=True)
    assert not torch.equal(guided, found)
    assert torch.equal(samplers[0].pictures(texts, names), plain)
    with pytest.raises(ConfigurationError, match="3 texts, 3 names and 2 hints"):
        controlled_pictures(samplers[0], controlled, texts, names, hints[:2])
    controlled.detach()


def test_guidance_on_the_hint_leaves_the_unconditional_half_without_it() -> None:
    noisy, times, hint, text = inputs()
    model = unet()
    controlled = ControlledUNet(model, new_encoder(model, CHANNELS))
    wake(controlled.encoder)
    twice = [torch.cat([value, value]) for value in (noisy, times, text)]
    with torch.no_grad(), controlled.given(hint, guided=True):
        found = run(model, *twice[:2], text=twice[2])
    expected = torch.cat([run(model, noisy, times, text=text), run(controlled, noisy, times, hint, text=text)])
    assert torch.allclose(found, expected, atol=1e-5)
