"""Deviations in controllable generation: the evaluator, the encoder, what is added, and the sample size of FID."""

from __future__ import annotations

from ether import config
from ether.measures.architectures import meta_model
from ether.paper.deviations.point import Point, table


def evaluator() -> Point:
    """Which networks judge the images."""
    judges = config.load("paper").experiment("control")["judges"]
    rows = [
        ["semantic maps", "UperNet-101", "SegFormer-B4", judges["segmenter"]["path"]],
        ["landmarks", "not stated", "face-alignment", judges["landmarks"]],
        ["edges", "not stated", "Canny, thresholds 100 and 200", "the same, the union over the colour channels"],
        ["FID", "not stated", "no script", judges["features"]],
    ]
    return Point(
        "The judges of controlled images",
        "Sec. 5.1.2 names UperNet-101, and the paper says that it follows official OFT, whose instructions evaluate with "
        "SegFormer-B4. UperNet-101 is not on the hub. The judge is a setting, and each table has its scores on real images, the "
        "highest that can be expected; scores of different judges cannot be compared.",
        table(["task", "the paper", "official OFT", "this suite, scale `paper`"], rows),
    )


def encoder() -> Point:
    """The size of the signal encoder and the cap of its rate."""
    cap = config.load("paper").experiment("control")["signal"]["cap"]
    count = sum(parameter.numel() for parameter in meta_model("control-encoder").parameters())
    return Point(
        "The signal encoder",
        f"App. C.2 limits the encoder's learning rate to 1e-4, and so does the scale `paper` ({cap:g}); the adapter's rate is "
        f"its own. The encoder has {count:,} parameters; what the paper's 3.1M include beyond them is a time embedding that "
        "official OFT computes and does not use. As in the paper, the column #params leaves the encoder out.",
    )


def start() -> Point:
    """The encoder with which the runs of the small scale start."""
    small = config.load("small").experiment("control")
    return Point(
        "The encoder's start at the small scale",
        "In the paper each run trains its signal encoder from zero, and so do the runs of the scale `paper`. At the small scale "
        f"all runs start from one encoder, trained beside the frozen model (`{small['signal']['start']['path']}`), and train it "
        f"further for {small['training']['max_steps']} steps at a rate of at most {small['signal']['cap']:g}. From zero, 400 "
        "steps taught the adapters nothing beyond what the encoder alone learns, and 800 steps take two to three minutes a run.",
    )


def magnitudes() -> Point:
    """How the magnitudes are re-fitted."""
    spec = next(run for run in config.runs(config.load("paper"), "control") if run.method == "oft-n4-magnitude")
    return Point(
        "Magnitude re-fitting",
        "The paper re-fits the magnitudes of OFT for one more epoch and does not say what is trained. Here rotations and signal "
        "encoder are frozen then, and one scale for each output of the adapted layers is trained, with OFT's learning rate "
        f"({spec.hyperparameters['learning_rate']:g}) for {spec.hyperparameters['refit_steps']:,} steps.",
    )


def sample_size() -> Point:
    """The bias of FID."""
    limits = config.load("paper").experiment("control")["limits"]
    return Point(
        "FID and its sample size",
        f"The paper takes FID over {limits['evaluation']:,} images. The distance is biased at this number: it is not 0 for real "
        "images. Table 3 has the FID of as many further real images in its row of real images.",
    )


def lora() -> Point:
    """The grid of LoRA."""
    search = config.load("paper").experiment("control_lora")["search"]
    total = 1
    for choices in search["choices"]:
        total *= len(choices)
    return Point(
        "LoRA on semantic maps",
        f"App. F reports that no combination of a random subsample of its grid gave comparable results, without numbers. The "
        f"grid has {total} combinations; here {search['draws']} of them are drawn (Figure 12), and LoRA has a row in Table 3 if "
        "a scale lists it. Whether it fails is a claim like the others.",
    )


POINTS = (evaluator, encoder, start, magnitudes, sample_size, lora)
