"""The numbers of README's section on time and memory: measures them, stores them, and writes them into README.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/record.py --device cpu --threads 1
    python benchmarks/record.py --device cuda
    python benchmarks/record.py --write-only

Runs `layer.py` and `step.py` with the settings below, stores the rows in ``benchmarks/results/<device>-<benchmark>.parquet``, and
replaces the text between the two markers in README. A test compares README with the stored rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- benchmarks/record.py -->", "<!-- end of benchmarks/record.py -->"

FIRST = ("frozen layer", "ETHER n=1", "ETHER n=32", "ETHER+ n=1", "ETHER+ n=32", "ETHER n=32 weight side")
LLAMA = ("4096x4096", "4096x11008", "11008x4096")  # the linear layers of Llama-2-7B
# {device: [(benchmark, its options)]}
RUNS = {
    "cpu": [
        ("layer", ["--shapes", "768x768", "--tokens", "2048", "--methods", *FIRST]),
        ("layer", ["--shapes", "4096x4096", "--tokens", "1024", "--methods", *FIRST, "--rounds", "9"]),
        ("step", ["--size", "110m", "--batch", "2", "--rounds", "3", "--methods", *FIRST[1:], "VeRA r=64"]),
    ],
    "cuda": [
        ("layer", ["--shapes", *LLAMA, "--tokens", "8192", "--sample", "0.015", "--rounds", "9"]),
        ("step", ["--size", "7b", "--tokens", "1024", "--batch", "4", "--rounds", "5", "--methods", *FIRST[1:]]),
    ],
}
LABELS = {
    "frozen layer": "frozen layer alone",
    "ETHER n=32 weight side": "ETHER n=32 on the weight, as in the released code",
    "ETHER+ n=32 weight side": "ETHER+ n=32 on the weight",
}
REFERENCE = "LoRA r=8"


def measure(device: str, threads: int | None, only: str | None = None) -> None:
    """Runs the benchmarks on a device and stores their rows."""
    frames: dict[str, list[pd.DataFrame]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (benchmark, options) in enumerate(RUNS[device]):
            if only not in (None, benchmark):
                continue
            output = Path(folder) / f"{number}.parquet"
            command = [sys.executable, str(ROOT / "benchmarks" / f"{benchmark}.py"), "--device", device, *options]
            command += ["--output", str(output), *(["--threads", str(threads)] if threads else [])]
            subprocess.run(command, check=True)
            frames.setdefault(benchmark, []).append(pd.read_parquet(output))
            RESULTS.mkdir(exist_ok=True)
            rows = pd.concat(frames[benchmark], ignore_index=True)
            rows.to_parquet(RESULTS / f"{device}-{benchmark}.parquet", index=False)


def _machine(rows: pd.DataFrame) -> str:
    """'x86_64 CPU, 1 thread, float32, torch 2.13'."""
    row = rows.iloc[0]
    threads = f", {row.threads} thread{'s' if row.threads > 1 else ''}" if "CPU" in row.device else ""
    return f"{row.device}{threads}, {row['dtype']}, torch {row.torch.split('+')[0]}"


def _layer_table(rows: pd.DataFrame) -> list[str]:
    """Time (and memory in brackets) of a layer's forward and backward pass, relative to LoRA's."""
    columns = list(dict.fromkeys(zip(rows["shape"], rows["tokens"], strict=True)))
    lines = [f"| {_machine(rows)} | " + " | ".join(f"{s.replace('x', ' × ')}, {t} tokens" for s, t in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for method in dict.fromkeys(rows["method"]):
        if method == REFERENCE:
            continue
        cells = []
        for shape, tokens in columns:
            [row] = rows[(rows["shape"] == shape) & (rows["tokens"] == tokens) & (rows["method"] == method)].itertuples()
            cells.append(f"{row.to_lora:.2f} ({row.memory_to_lora:.2f})")
        lines.append(f"| {LABELS.get(method, method)} | {' | '.join(cells)} |")
    return lines


def _bound(rows: pd.DataFrame, method: str = "ETHER+ n=32", n: int = 32) -> list[str]:
    """What bounds the slowest cell: the operations of an update of rank 4n, relative to those of the layer."""
    of_method = rows[rows["method"] == method]
    worst = of_method.loc[of_method["to_lora"].idxmax()]
    width, outputs = map(int, worst["shape"].split("x"))
    rank = 4 * n  # u and v on both sides
    # Forward, gradient of the input and of the factors; the layer: forward and gradient of the input.
    share = 3 * rank * (width + outputs) / (2 * width * outputs)
    [frozen] = rows.loc[(rows["method"] == "frozen layer") & (rows["shape"] == worst["shape"]), "to_lora"]
    text = (
        f"{method} on {worst['shape'].replace('x', ' × ')} is bounded by its rank: u and v of {n} blocks on both sides are an "
        f"update of rank {rank}, whose products are {share:.2f} times the layer's own operations. At the speed of the layer's "
        f"products that alone is {1 + share:.2f} × {frozen:.3f} = {(1 + share) * frozen:.2f} of LoRA's time."
    )
    return textwrap.wrap(text, 125)


def _step_table(rows: pd.DataFrame) -> list[str]:
    """Time and memory of a whole step, relative to LoRA's."""
    first = rows.iloc[0]
    title = f"Llama of {str(first['size']).upper()}, {first['batch']} × {first['tokens']} tokens; {_machine(rows)}"
    lines = [f"| {title} | time | memory |", "|---|---|---|"]
    lines += [
        f"| {LABELS.get(row.method, row.method)} | {row.to_lora:.2f} | {row.memory_to_lora:.2f} |"
        for row in rows.itertuples()
        if row.method != REFERENCE
    ]
    return lines


def section() -> str:
    """The text between the markers, from the stored rows."""
    lines = [
        "Time of forward + backward, in brackets peak memory, divided by those of PEFT's LoRA of rank 8 in the same run (medians",
        "over interleaved rounds). The CPU was shared with other programs: differences of time below about 0.1 are noise.",
    ]
    tables = {"layer": _layer_table, "step": _step_table}
    for device in RUNS:
        for benchmark, table in tables.items():
            file = RESULTS / f"{device}-{benchmark}.parquet"
            if file.is_file():
                if benchmark == "step":
                    lines += ["", "A whole training step (q and v adapted, AdamW):"]
                lines += ["", *table(pd.read_parquet(file))]
                if (device, benchmark) == ("cpu", "layer"):
                    lines += ["", *_bound(pd.read_parquet(file))]
    if not list(RESULTS.glob("cuda-*.parquet")):
        lines += [
            "",
            "**No GPU was available.** The CUDA kernels are tested with Triton's interpreter only and have not been timed.",
        ]
    lines += [
        "",
        "`python benchmarks/record.py --device cpu --threads 1` (or `--device cuda`) measures all of them, stores the rows in "
        "`benchmarks/results`, and writes this section.",
    ]
    return "\n".join(lines)


def write(readme: Path) -> None:
    """Replaces the section in README."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{section()}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=RUNS, default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", choices=("layer", "step"), help="measure one of the two benchmarks")
    parser.add_argument("--write-only", action="store_true", help="write README from the stored rows")
    options = parser.parse_args()
    if not options.write_only:
        measure(options.device, options.threads, options.only)
    write(ROOT / "README.md")


if __name__ == "__main__":
    main()
