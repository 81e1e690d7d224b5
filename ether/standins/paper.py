"""Everything that the paper's scale reads, tiny: models as deep as the real ones and with the names of their modules, and data.

    python -m ether.standins paper MIRROR
    snakemake --cores 2 all --config scale=paper-dry mirror=MIRROR

runs every experiment of the paper's scale to the end of its tables and figures on a CPU, with accumulation and gradient
checkpointing, the image generators in half precision, in a few steps each. The weights are random and the data are those of
this project's worlds in the hub's layouts, so the numbers have no meaning; what is tested is that nothing is missing, misnamed
or of the wrong shape before a GPU is paid for.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

from ether.foundation import language_encoder
from ether.results import write_text
from ether.standins import diffusion, llama, vision
from ether.worlds import control, facts, language, pictures
from ether.worlds import vision as images
from ether.worlds.pictures import PROMPT_FILE

ENCODER = "microsoft/deberta-v3-base"
SEGMENTER = "nvidia/segformer-b4-finetuned-ade-512-512"
LAYERS = 12  # of DeBERTaV3-base and ViT-B
LLAMA_LAYERS = 32  # of Llama-2-7B
SIDE = 64  # of the pipeline's images, in pixels

SENTENCES = {"train": 560, "validation": 32, "tuning": 1}  # more than the 500 that `glue_rates` holds back
FACTS = {"alpaca/train": 64} | dict.fromkeys(
    ("mmlu/test", "mmlu/validation", "mmlu/dev", "ai2_arc/train", "ai2_arc/validation", "ai2_arc/test", "truthful_qa/validation"),
    12,
)
PAIRS = {"train": 16, "validation": 8, "tuning": 1}
# Of the tasks of VTAB: the folder and configuration on the hub, its splits, and the columns of the picture and the label.
PICTURES = {
    "caltech101": ("mteb/Caltech101/default", ("train", "test"), ("image", "label")),
    "dtd": ("tanganke/dtd/default", ("train", "test"), ("image", "label")),
    "flowers102": ("dpdl-benchmark/oxford_flowers102/default", ("train", "test", "validation"), ("image", "label")),
    "svhn": ("ufldl-stanford/svhn/cropped_digits", ("train", "test"), ("image", "label")),
    "eurosat": ("timm/eurosat-rgb/default", ("train", "test", "validation"), ("image", "label")),
    "snorb_elevation": ("clip-benchmark/wds_vtab-smallnorb_label_elevation/default", ("train", "test"), ("webp", "cls")),
}
# The data sets of the worlds, and their places on the hub.
MOVED = {
    "world/glue": "nyu-mll/glue",
    "world/alpaca": "tatsu-lab/alpaca",
    "world/ai2_arc": "allenai/ai2_arc",
    "world/truthful_qa": "truthfulqa/truthful_qa",
    "world/control/semantic": "local/ADEChallengeData2016",
    "world/control/landmarks": "local/celeba-hq-landmarks",
    "world/control/edges": "local/coco2017",
}
# Subjects of google/dreambooth, and which of the world's stand in for them; of MMLU, in place of the world's own.
SUBJECTS = {"dog": "fluent_penguin", "backpack": "fluent_cupcake", "teapot": "fluent_teapot"}
QUESTIONS = ("anatomy", "astronomy", "marketing")


def _write_encoder(folder: Path, seed: int) -> None:
    from transformers import DebertaV2Config, DebertaV2Model

    tokenizer = language_encoder.build_tokenizer()
    tokenizer.model_max_length = 512
    settings = language_encoder.configuration(len(tokenizer)).to_dict()
    settings |= {"num_hidden_layers": LAYERS, "max_position_embeddings": 512, "pos_att_type": ["p2c", "c2p"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DebertaV2Model(DebertaV2Config(**settings))

    def write(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    diffusion.write_complete(folder, write)


def _write_segmenter(folder: Path, seed: int) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        labels: dict[str, Any] = {"num_labels": len(control.CLASSES)}  # known to every configuration, but to no parameter of it
        config = SegformerConfig(
            **labels,
            hidden_sizes=[8, 8, 16, 16],
            depths=[3, 8, 27, 3],  # of SegFormer-B4
            num_attention_heads=[1, 2, 4, 8],
            decoder_hidden_size=16,
        )
        model = SegformerForSemanticSegmentation(config)

    def write(target: Path) -> None:
        model.save_pretrained(target)
        size = {"height": SIDE, "width": SIDE}
        processor = {
            "do_resize": True, "size": size, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        }  # fmt: skip
        write_text(json.dumps(processor, indent=2), target / "preprocessor_config.json")

    diffusion.write_complete(folder, write)


def write_models(mirror: Path, seed: int = 0) -> list[Path]:
    """Write the models below ``<mirror>/models``; the data must be there, since Llama's tokenizer is trained on them.

    Returns:
        Their folders.
    """
    models = mirror / "models"
    _write_encoder(models / ENCODER, seed)
    texts = pyarrow.parquet.read_table(mirror / llama.TEXT, columns=["text"])["text"].to_pylist()
    llama.write(models / llama.HUB_ID, texts, layers=LLAMA_LAYERS, seed=seed)
    diffusion.write_pipeline(models / diffusion.PIPELINE, SIDE, seed, deep=True)
    diffusion.write_clip(models / diffusion.CLIP, SIDE, seed + 1)
    diffusion.write_dino(models / diffusion.DINO, SIDE, seed + 2)
    _write_segmenter(models / SEGMENTER, seed)
    vision.write_mirror(mirror, width=256, layers=LAYERS, seed=seed)
    names = (ENCODER, llama.HUB_ID, diffusion.PIPELINE, diffusion.CLIP, diffusion.DINO, SEGMENTER, vision.HUB_ID)
    return [models / name for name in names]


def write_data(mirror: Path, seed: int = 0) -> list[Path]:
    """Write the data sets below ``<mirror>/datasets``, in the layouts and with the columns that they have on the hub.

    Returns:
        Their folders.
    """
    from datasets import Dataset  # takes a second to import, and only writing needs it

    with tempfile.TemporaryDirectory(prefix=".worlds-", dir=mirror) as temporary:
        root = Path(temporary)
        language.write(root, seed=seed, sizes=SENTENCES)
        facts.write(root, seed=seed, sizes=FACTS)
        control.write(root, seed=seed, sizes=PAIRS)
        pictures.write(root, seed=seed)
        images.write(root, seed=seed, sizes={"train": 24, "tuning": 12, "test": 12})
        made = root / "datasets"
        found = [_move(made / source, mirror / "datasets" / target) for source, target in MOVED.items()]
        found += [_write_subjects(made / "world/dreambooth", mirror), _write_questions(made / "world/mmlu", mirror)]
        for task, (folder, splits, columns) in PICTURES.items():
            target = mirror / "datasets" / folder
            target.mkdir(parents=True, exist_ok=True)
            for split in splits:
                file = made / "world/vtab" / task / f"{'tuning' if split == 'validation' else split}.parquet"
                table = Dataset.from_parquet(str(file), cache_dir=str(root / "cache"))
                renamed = dict(zip(("image", "label"), columns, strict=True))
                table.rename_columns({k: v for k, v in renamed.items() if k != v}).to_parquet(target / f"{split}.parquet")
            found.append(target)
    return found


def _write_subjects(source: Path, mirror: Path) -> Path:
    """google/dreambooth: the world's pictures and prompts, under the names of the real subjects."""
    folder = mirror / "datasets/google/dreambooth"
    shutil.rmtree(folder, ignore_errors=True)
    prompts = (source / "dataset" / PROMPT_FILE).read_text(encoding="utf-8")
    for name, found in SUBJECTS.items():
        shutil.copytree(source / "dataset" / found, folder / "dataset" / name)
        prompts = prompts.replace(f"{found},", f"{name},")
    write_text(prompts, folder / "dataset" / PROMPT_FILE)
    return folder


def _write_questions(source: Path, mirror: Path) -> Path:
    """cais/mmlu: one file for all subjects, with their names in a column."""
    folder = mirror / "datasets/cais/mmlu/all"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("test", "validation", "dev"):
        tables = []
        for subject, name in zip(sorted(path for path in source.iterdir() if path.is_dir()), QUESTIONS, strict=False):
            table = pyarrow.parquet.read_table(subject / f"{split}.parquet")
            place = table.column_names.index("subject")
            tables.append(table.set_column(place, "subject", pyarrow.array([name] * len(table))))
        pyarrow.parquet.write_table(pyarrow.concat_tables(tables), folder / f"{split}.parquet")
    return folder.parent


def _move(source: Path, target: Path) -> Path:
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    return source.rename(target)


def write_mirror(mirror: Path, seed: int = 0) -> list[Path]:
    """Write models and data; other folders of the mirror are not changed. Returns the folders written."""
    mirror.mkdir(parents=True, exist_ok=True)
    return [*write_data(mirror, seed), *write_models(mirror, seed)]
