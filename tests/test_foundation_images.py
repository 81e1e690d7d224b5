"""The text-to-image model and its judges: intact, loadable by the libraries' classes, accurate, and reproducible."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from ether import foundation
from ether.errors import MissingResourceError
from ether.foundation import (
    autoencoder,
    caption_tokenizer,
    image_judges,
    text_to_image,
    text_to_image_training,
)
from ether.foundation.pictures import to_input
from ether.worlds import pictures


@pytest.mark.parametrize("name", ["text-to-image", "image-judges", "vision-encoder"])
def test_the_shipped_folders_pass_their_cards(name: str, tmp_path: Path) -> None:
    folder = foundation.path(name)
    card = json.loads((folder / "card.json").read_text())
    present = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert set(card["sha256"]) == present - {"card.json"}
    assert {"command", "seed", "steps", "hardware", "versions", "minutes", "scores", "licence"} <= set(card)
    assert not [file for file in present if file.endswith((".bin", ".pt", ".pkl", ".ckpt"))]
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 20e6
    harmed = Path(shutil.copytree(folder, tmp_path / "model"))
    next(harmed.rglob("*.safetensors")).unlink()
    with pytest.raises(MissingResourceError, match="foundation=rebuild"):
        foundation.verify(harmed)


def test_every_word_of_the_captions_is_one_token() -> None:
    words = caption_tokenizer.build_tokenizer()
    assert all(len(words(word, add_special_tokens=False)["input_ids"]) == 1 for word in pictures.vocabulary())
    assert len(words("zebra", add_special_tokens=False)["input_ids"]) > 1
    _, captions, _ = pictures.corpus(11, 500)
    lengths = [len(words(text)["input_ids"]) for text in captions]
    assert max(lengths) <= words.model_max_length == caption_tokenizer.LENGTH
    encoded = words("A red teapot", padding="max_length")["input_ids"]
    assert words.decode(encoded, skip_special_tokens=True).strip() == "a red teapot"


def test_standardising_the_latents_changes_no_picture() -> None:
    torch.manual_seed(0)
    code = autoencoder.new_autoencoder().eval()
    shown, _, _ = pictures.corpus(12, 40)
    latents = autoencoder.encode(code, shown)
    with torch.no_grad():
        before = code.decode(latents).sample
        new = autoencoder.standardise(code, latents)
        after = code.decode(new).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(autoencoder.encode(code, shown), new, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(new.std((0, 2, 3)), torch.ones(autoencoder.CHANNELS), atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def pipeline() -> text_to_image.StableDiffusionPipeline:
    return text_to_image.load(foundation.path("text-to-image"))


def test_the_shipped_pipeline_is_a_stable_diffusion_in_float32(pipeline: text_to_image.StableDiffusionPipeline) -> None:
    assert {p.dtype for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in m.parameters()} == {torch.float32}
    linear = {name: m for name, m in pipeline.unet.named_modules() if isinstance(m, torch.nn.Linear)}
    for which in ("attn1", "attn2"):
        for end in ("to_q", "to_k", "to_v", "to_out.0"):
            chosen = [m for name, m in linear.items() if name.endswith(f"{which}.{end}")]
            assert chosen and all(side % 4 == 0 for m in chosen for side in m.weight.shape)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.vae.config.scaling_factor == 1.0


def test_the_shipped_autoencoder_keeps_details(pipeline: text_to_image.StableDiffusionPipeline) -> None:
    card = json.loads((foundation.path("text-to-image") / "card.json").read_text())["scores"]
    shown, things = autoencoder.examples(4711, 64)
    found = autoencoder.object_psnr(pipeline.vae, shown, things)
    assert found > 24 and abs(found - card["autoencoder, object PSNR"]) < 1
    with torch.no_grad():
        decoded = pipeline.vae.decode(autoencoder.encode(pipeline.vae, shown)).sample
    again = ((decoded.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    error = np.sqrt(((again - shown)[things] ** 2).mean())
    assert found == pytest.approx(20 * np.log10(255 / error), abs=1e-3)


def test_the_shipped_pipeline_generates_what_the_captions_describe(pipeline: text_to_image.StableDiffusionPipeline) -> None:
    expected = pictures.held_out_scenes(99, 20)
    prompts = [pictures.describe(scene) for scene in expected]
    shown = text_to_image.generate(pipeline, prompts, seed=5, steps=12)
    assert shown.shape == (20, 64, 64, 3) and shown.dtype == np.uint8
    again = text_to_image.generate(pipeline, prompts[:3], seed=5, steps=12)
    assert np.abs(again.astype(int) - shown[:3]).max() <= 1  # the noise of each is independent of its batch
    reader = image_judges.load_reader(foundation.path("image-judges") / "reader")
    found = image_judges.agreement(reader, shown, expected)
    assert found["background"] >= 0.95 and found["thing"] >= 0.85  # of 20; the card has the shares of 200
    for picture, scene in zip(shown, expected, strict=True):  # without the reader, where the corners are one colour
        if scene.background == "black":
            assert np.median(picture[[0, 0, -1, -1], [0, -1, 0, -1]]) < 70


def test_a_name_changes_the_prediction_and_identifiers_are_untouched(pipeline: text_to_image.StableDiffusionPipeline) -> None:
    noise = torch.randn(8, autoencoder.CHANNELS, autoencoder.GRID, autoencoder.GRID, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def predicted(caption: str) -> torch.Tensor:
        context = pipeline.encode_prompt([caption], "cpu", 1, False)[0]
        return pipeline.unet(noise, 999, context.expand(len(noise), -1, -1)).sample

    reference = predicted("a photo of an octopus on the grass")
    other = predicted("a photo of a tulip on the grass")
    assert (other - reference).norm() > 0.2 * reference.norm()
    tokenizer: object = pipeline.tokenizer
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in pictures.SPARE_TOKENS]  # type: ignore[operator]
    table = pipeline.text_encoder.get_input_embeddings().weight
    trained = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in pictures.NAMES]  # type: ignore[operator]
    assert table[ids].std() < table[trained].std()  # as they were initialised


def test_the_judges_reach_the_scores_of_their_card() -> None:
    folder = foundation.path("image-judges")
    card = json.loads((folder / "card.json").read_text())["scores"]
    reader = image_judges.load_reader(folder / "reader")
    samples = pictures.held_out_scenes(4711, 200)
    found = image_judges.agreement(reader, pictures.render_many(samples), samples)
    for head in image_judges.HEADS:
        assert found[head] > 0.93
        assert abs(found[head] - card[f"reader, held-out pairs, {head}"]) < 0.05
    model, words = image_judges.load_clip(folder / "clip")
    ranked = image_judges.retrieval(model, words, seed=4711)
    assert all(value > 0.6 for value in ranked.values())  # chance is 0.01
    dino = image_judges.load_dino(folder / "dino")
    unseen = [(artist, subject.noun) for subject in pictures.SUBJECTS for artist in ("noto", "fluent")]
    alike = image_judges.discrimination(dino, unseen, seed=4711, count=6)
    assert alike["AUC"] > 0.93
    assert alike["same drawing"] > alike["the other artist's drawing"] + 0.3 > alike["other names"]


def test_no_judge_has_seen_a_subject() -> None:
    known = image_judges.known_drawings()
    assert len(known) == len(set(known)) == 2 * 485 - len(pictures.SUBJECTS)
    assert not {(subject.artist, subject.noun) for subject in pictures.SUBJECTS} & set(known)


def test_features_have_length_one_and_processors_prepare_pictures_alike() -> None:
    folder = foundation.path("image-judges")
    shown = pictures.render_many(pictures.held_out_scenes(1, 4))
    model, words = image_judges.load_clip(folder / "clip")
    for features in (
        image_judges.image_features(model, shown),
        image_judges.text_features(model, words, ["a photo of a red teapot", "a rose"]),
        image_judges.subject_features(image_judges.load_dino(folder / "dino"), shown),
    ):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
    for judge in ("clip", "dino", "reader"):
        processor = AutoImageProcessor.from_pretrained(folder / judge)
        prepared = processor([Image.fromarray(p) for p in shown], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(prepared, to_input(shown), atol=1e-6, rtol=0)


def test_discrimination_is_perfect_for_an_oracle_and_chance_for_noise() -> None:
    class Oracle(torch.nn.Module):
        """Features that depend on the picture's index only: `right` of the drawings, or at random."""

        def __init__(self, features: torch.Tensor) -> None:
            super().__init__()
            self.features = features

        def forward(self, pixel_values: torch.Tensor) -> object:
            return type("Output", (), {"pooler_output": self.features[: len(pixel_values), :, None, None]})()

    drawn = image_judges.known_drawings()[:4]
    perfect = Oracle(torch.eye(8)[:4].repeat_interleave(5, dim=0))
    noise = Oracle(torch.randn(20, 64, generator=torch.Generator().manual_seed(0)))
    assert image_judges.discrimination(perfect, drawn, count=5)["AUC"] == 1.0  # type: ignore[arg-type]
    assert 0.35 < image_judges.discrimination(noise, drawn, count=5)["AUC"] < 0.65  # type: ignore[arg-type]


def _weights(folder: Path, name: str) -> dict[str, str]:
    """SHA-256 of weights and tokenizers of a new model, whose card describes the same kind of model as the shipped one."""
    card, shipped = (json.loads((f / "card.json").read_text()) for f in (foundation.verify(folder), foundation.path(name)))
    keys = {"name", "what", "batch", "parameters", "licence", "sampling", "precision"} & set(shipped)
    assert {key: card[key] for key in keys} == {key: shipped[key] for key in keys}
    return {name: digest for name, digest in card["sha256"].items() if name.endswith((".safetensors", "tokenizer.json"))}


def test_pretraining_is_deterministic_also_when_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_to_image_training, "evaluate", lambda *_, **__: {})
    threads = torch.get_num_threads()
    try:
        foundation.pretrain("text-to-image", tmp_path / "whole", steps=3)
        step, calls = text_to_image_training.Trainer.train, 0

        def failing(self: text_to_image_training.Trainer, *batch: torch.Tensor) -> float:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return step(self, *batch)

        monkeypatch.setattr(text_to_image_training.Trainer, "train", failing)
        with pytest.raises(KeyboardInterrupt):
            foundation.pretrain("text-to-image", tmp_path / "parts", steps=3, work=tmp_path / "work", every=0)
        foundation.pretrain("text-to-image", tmp_path / "parts", steps=3, work=tmp_path / "work", every=0)
    finally:
        torch.set_num_threads(threads)
    assert calls == 4
    assert _weights(tmp_path / "whole", "text-to-image") == _weights(tmp_path / "parts", "text-to-image")


def test_training_the_judges_is_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_judges, "validate", lambda *_, **__: {})
    threads = torch.get_num_threads()
    try:
        for name in "ab":
            foundation.pretrain("image-judges", tmp_path / name, steps=1)
    finally:
        torch.set_num_threads(threads)
    first, second = (_weights(tmp_path / name, "image-judges") for name in "ab")
    assert len(first) == 4 and first == second
