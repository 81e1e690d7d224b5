"""Runs are deterministic and resumable, a run that fails is a row, and what is missing is reported before training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import matthews_corrcoef

from ether import check, config, hub, results, sources, training
from ether import run as runner
from ether.errors import ConfigurationError, EtherError, HardwareError, MissingResourceError
from ether.experiments import glue
from ether.experiments.common import experiment, splits_fingerprint


def spec_of(method: str, task: str = "rte", seed: int = 0, **hyper) -> config.RunSpec:
    scale = config.load("smoke", {"methods": method, "tasks": task, "seeds": str(seed)})
    (spec,) = config.runs(scale, "glue")
    return dataclasses.replace(spec, hyperparameters=spec.hyperparameters | hyper)


def values(rows: list[dict]) -> pd.DataFrame:
    return results.metrics_frame(rows)


@pytest.mark.parametrize("method", ["full", "adalora", "ether", "ether-plus", "boft"])
def test_same_seed_same_numbers_to_the_bit(method, workplace, tmp_path):
    first = runner.run(spec_of(method), Path("results/smoke"), tmp_path / "a")[1]
    second = runner.run(spec_of(method), Path("results/smoke"), tmp_path / "b")[1]
    other = runner.run(spec_of(method, seed=1), Path("results/smoke"), tmp_path / "c")[1]
    pd.testing.assert_frame_equal(values(first), values(second), check_exact=True)
    assert not values(first)["value"].equals(values(other)["value"])


class _Killed(BaseException):
    """Ends a run as a signal would: nothing gets to clean up."""


# Two evaluations: the checkpoint lies between two logs of the loss, which is a mean over the steps since the last one.
@pytest.mark.parametrize(
    "method,evaluations",
    [*((m, 3) for m in ("full", "lora", "adalora", "ether", "ether-plus", "oft", "p-adapter")), ("ether", 2)],
)
def test_an_interrupted_run_goes_on_to_the_same_numbers(method, evaluations, workplace, tmp_path, monkeypatch):
    hyper = {"max_steps": 12, "checkpoint_steps": 4, "evaluations": evaluations}
    whole = runner.run(spec_of(method, **hyper), Path("results/smoke"), tmp_path / "whole")[1]

    step = training.RankAllocation.on_optimizer_step

    def kill_at_ten(self, args, state, control, **kwargs):
        step(self, args, state, control, **kwargs)
        if state.global_step == 9:
            raise _Killed

    monkeypatch.setattr(training.RankAllocation, "on_optimizer_step", kill_at_ten)
    with pytest.raises(_Killed):
        runner.run(spec_of(method, **hyper), Path("results/smoke"), tmp_path / "cut")
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert training.latest_checkpoint(tmp_path / "cut" / "checkpoints").endswith("checkpoint-8")
    resumed = runner.run(spec_of(method, **hyper), Path("results/smoke"), tmp_path / "cut")[1]
    pd.testing.assert_frame_equal(values(whole), values(resumed), check_exact=True)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("{")
    assert training.latest_checkpoint(tmp_path).endswith("checkpoint-4")
    assert training.latest_checkpoint(tmp_path / "nowhere") is None


def test_a_run_row_carries_its_provenance(workplace, tmp_path):
    row, rows = runner.run(spec_of("ether"), Path("results/smoke"), tmp_path)
    frame = results.runs_frame([row])
    assert list(frame.columns) == list(results.RUN_COLUMNS)
    one = frame.iloc[0]
    assert one.status == "finished" and one.steps == 4 and one.device and one.peak_memory_bytes > 50e6
    assert json.loads(one.config)["hyperparameters"]["learning_rate"] > 0
    assert json.loads(one.versions)["torch"].startswith(torch.__version__.split("+")[0])
    assert len(one.base_model_fingerprint) == 64 and one.data == "world/glue/rte"
    head = 96 * 96 + 96 + 96 * 2 + 2
    assert one.trainable_parameters > head
    assert {"score", "loss"} <= {r["metric"] for r in rows}


def test_one_half_selects_and_the_other_is_reported(workplace, tmp_path):
    _, rows = runner.run(spec_of("ether", max_steps=6, evaluations=3), Path("results/smoke"), tmp_path)
    found = {(r["step"], r["split"]): r["value"] for r in rows if r["metric"] == "score"}
    assert {step for step, split in found if split == "selection"} == {2, 4, 6} == {s for s, split in found if split == "report"}
    (best,) = [step for step, split in found if split == "best"]
    assert found[best, "selection"] == max(found[step, "selection"] for step in (2, 4, 6))
    assert found[best, "best"] == found[best, "report"] and found[6, "last"] == found[6, "report"]


def test_the_halves_are_disjoint_and_the_same_in_every_run():
    labels, right = np.arange(101) % 2, np.arange(101) < 40
    outputs = np.eye(2)[np.where(right, labels, 1 - labels)]
    found = glue.halves("accuracy", outputs, labels)
    assert found == glue.halves("accuracy", outputs, labels)
    assert 51 * found["selection_score"] + 50 * found["report_score"] == pytest.approx(101 * found["score"])  # every example once
    assert 0 < found["selection_score"] != found["report_score"]
    matthews = glue.halves("matthews", outputs, labels)
    assert matthews["score"] == pytest.approx(100 * matthews_corrcoef(labels, outputs.argmax(1)))


def test_divergence_is_a_row_with_its_reason(workplace, tmp_path):
    row, rows = runner.run(
        spec_of("full", learning_rate=1.0e30, max_grad_norm=0.0, max_steps=6, evaluations=6), Path("results/smoke"), tmp_path
    )
    assert row["status"] == "diverged" and "loss is" in row["reason"] and row["steps"] < 6
    assert [r for r in rows if r["metric"] == "score"], "what was measured is kept"


def test_prompt_tuning_runs_like_any_other_method(workplace, tmp_path):
    how = {"kind": "peft", "type": "PROMPT_TUNING", "config": {"num_virtual_tokens": 5}}
    spec = dataclasses.replace(spec_of("lora", checkpoint_steps=2), adapt=how)
    check.check_run(spec, Path("results/smoke"))
    row, rows = runner.run(spec, Path("results/smoke"), tmp_path)
    head = 128 * 128 + 128 + 128 * 2 + 2  # pooler and classifier
    assert row["status"] == "finished" and row["trainable_parameters"] == 5 * 128 + head
    assert [r["step"] for r in rows if (r["split"], r["metric"]) == ("validation", "score")] == [2, 4]


def test_every_hyperparameter_can_be_used_in_a_methods_config(workplace, tmp_path, monkeypatch):
    how = {"kind": "peft", "type": "LORA", "config": {"r": 2, "lora_dropout": "$weight_decay"}}
    spec = dataclasses.replace(spec_of("lora", weight_decay=0.25), adapt=how)
    check.check_run(spec, Path("results/smoke"))
    adapted = []
    fit = glue.Glue.fit
    monkeypatch.setattr(
        glue.Glue, "fit", lambda self, loaded, model, *rest: adapted.append(model) or fit(self, loaded, model, *rest)
    )
    row, _ = runner.run(spec, Path("results/smoke"), tmp_path)
    assert row["status"] == "finished" and adapted[0].peft_config["default"].lora_dropout == 0.25
    wrong = dataclasses.replace(spec, adapt=how | {"config": {"r": 2, "lora_dropout": "$decay"}})
    with pytest.raises(ConfigurationError, match=r"\$decay.*\$weight_decay"):
        check.check_run(wrong, Path("results/smoke"))


def test_skeletons_are_the_models_that_are_loaded(workplace):
    found = {}
    for task in ("rte", "mnli", "stsb", "cola"):
        spec = spec_of("full", task)
        skeleton = glue.EXPERIMENT.skeleton(spec, Path("results/smoke"))
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in skeleton.build().named_parameters()}
        found[task] = skeleton.key, shapes
        loaded = glue.EXPERIMENT.load(spec, Path("results/smoke"), "cpu")
        assert shapes == {name: p.shape for name, p in loaded.model.named_parameters()}
        assert skeleton.task_type == loaded.task_type
    keys = [key for key, _ in found.values()]
    assert found["rte"] == found["cola"] and len(set(keys)) == 3  # two, three and one label


def test_data_is_identified_by_its_contents_alone(workplace, tmp_path):
    def fingerprint(folder: Path) -> str:
        return splits_fingerprint(hub.Source("world/glue", folder), "rte", ["train", "validation"])

    original = workplace / "results/smoke/world/datasets/world/glue"
    copied = Path(shutil.copytree(original, tmp_path / "copy"))
    assert fingerprint(copied) == fingerprint(original)
    frame = pd.read_parquet(copied / "rte/validation.parquet")
    frame.iloc[:-1].to_parquet(copied / "rte/validation.parquet")
    assert fingerprint(copied) != fingerprint(original)
    assert splits_fingerprint(hub.Source("nyu-mll/glue", None, "abc"), "rte", ["train"]) == "nyu-mll/glue@abc"


def test_an_unknown_experiment_module_is_an_error():
    assert experiment("glue") is glue.EXPERIMENT
    with pytest.raises(ConfigurationError, match="Unknown module 'gleu'.*workflow/experiments.yaml.*Did you mean 'glue'"):
        experiment("gleu")


def test_out_of_memory_is_a_row(workplace, tmp_path, monkeypatch):
    def explode(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(glue.Glue, "fit", explode)
    row, rows = runner.run(spec_of("lora"), Path("results/smoke"), tmp_path)
    assert row["status"] == "failed" and "out of memory" in row["reason"] and rows == []


def test_a_job_keeps_finished_runs_and_repeats_none(workplace, monkeypatch):
    for folder in ("runs", "work"):
        shutil.rmtree(f"results/smoke/{folder}", ignore_errors=True)
    overrides = {"methods": "lora,ether", "tasks": "rte", "seeds": "0"}
    real, calls = runner.run, []

    def counted(spec, *args):
        calls.append(spec.method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(spec, *args)

    monkeypatch.setattr(runner, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        runner.run_job("smoke", "glue", "all", overrides)
    assert not Path("results/smoke/runs/glue/all/runs.parquet").exists()
    runs, metrics = runner.run_job("smoke", "glue", "all", overrides)
    assert calls == ["lora", "ether", "ether"]
    assert list(runs["method"]) == ["lora", "ether"]
    pd.testing.assert_frame_equal(pd.read_parquet("results/smoke/runs/glue/all/metrics.parquet"), metrics)
    assert set(metrics["run_id"]) == set(runs["run_id"])
    # A second process that waited for this one uses what it wrote; Snakemake removes outputs that are to be made again.
    pd.testing.assert_frame_equal(runner.run_job("smoke", "glue", "all", overrides)[1], metrics)
    assert len(calls) == 3
    # A further seed adds its own runs only; without it, the job is as it was.
    shutil.rmtree("results/smoke/runs")
    more, _ = runner.run_job("smoke", "glue", "all", overrides | {"seeds": "0,1"})
    assert len(calls) == 5 and list(more["seed"]) == [0, 1, 0, 1]
    shutil.rmtree("results/smoke/runs")
    pd.testing.assert_frame_equal(runner.run_job("smoke", "glue", "all", overrides)[1], metrics)
    assert len(calls) == 5
    assert not list(Path("results/smoke/work/glue/all").rglob("checkpoint*"))


def test_what_other_code_has_stored_is_not_mixed_in(workplace, monkeypatch):
    for folder in ("runs", "work"):
        shutil.rmtree(f"results/smoke/{folder}", ignore_errors=True)
    overrides = {"methods": "lora,ether", "tasks": "rte", "seeds": "0"}
    real, calls = runner.run, []

    def interrupted(spec, *args):
        calls.append(spec.method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(spec, *args)

    monkeypatch.setattr(runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run_job("smoke", "glue", "all", overrides)
    text_of = sources.text_of
    monkeypatch.setattr(sources, "text_of", lambda files: text_of(files) + "# an edit")
    runner.run_job("smoke", "glue", "all", overrides)
    assert calls == ["lora", "ether", "lora", "ether"]
    monkeypatch.setattr(sources, "text_of", text_of)  # the finished job is of the edited code, too
    runner.run_job("smoke", "glue", "all", overrides)
    assert calls == ["lora", "ether"] * 3
    shutil.rmtree("results/smoke/runs")


def test_a_changed_file_of_a_mirror_changes_what_a_run_was_made_from(tmp_path):
    settings = {"model": {"path": "some/model"}, "judges": {"dino": {"path": "foundation/image-judges"}}, "data": {"path": "a/b"}}
    for folder in ("models/some/model", "datasets/a/b/inner"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file.json").write_text("1")
    before = hub.local_state(settings, {"mirror": str(tmp_path)})
    assert [Path(name).name for name, *_ in before] == ["file.json"] * 2
    assert hub.local_state(settings, {"mirror": str(tmp_path)}) == before and hub.local_state(settings, {"mirror": None}) == []
    (tmp_path / "datasets/a/b/inner/file.json").write_text("22")
    assert hub.local_state(settings, {"mirror": str(tmp_path)}) != before


def test_a_missing_gpu_is_reported_before_work_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = config.runs(config.load("paper", {"methods": "ether", "tasks": "rte"}), "glue")[0]
    with pytest.raises(HardwareError, match="needs a CUDA GPU"):
        runner.device_of(spec)
    assert runner.device_of(spec_of("ether")) == "cpu"


def test_a_full_disk_is_explained_and_keeps_what_there_was(tmp_path, monkeypatch):
    import errno

    (tmp_path / "kept.txt").write_text("old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(HardwareError, match="No space left on the disk that holds .*kept.txt"):
        results.write_text("new", tmp_path / "kept.txt")
    monkeypatch.undo()
    assert (tmp_path / "kept.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


# --- metrics ---------------------------------------------------------------------------------------------------


def test_scores_against_definitions():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 2)), rng.integers(0, 2, 200)
    hits = sum(int(row[1] > row[0]) == label for row, label in zip(logits, labels, strict=True))
    assert glue.score("accuracy", logits, labels)["score"] == pytest.approx(hits / 2)
    assert glue.score("matthews", logits, labels)["score"] == pytest.approx(100 * matthews_corrcoef(labels, logits.argmax(1)))
    x, y = rng.normal(size=(50, 1)), rng.normal(size=50)
    ranks = [np.argsort(np.argsort(v)) for v in (x[:, 0], y)]
    pearson, spearman = np.corrcoef(x[:, 0], y)[0, 1], np.corrcoef(*ranks)[0, 1]
    assert glue.score("pearson_spearman", x, y)["score"] == pytest.approx(50 * (pearson + spearman))


def test_scores_of_a_collapsed_model_are_defined():
    assert glue.score("pearson_spearman", np.full((5, 1), np.nan), np.arange(5.0))["score"] == 0
    assert glue.score("accuracy", np.full((4, 2), np.nan), np.array([0, 0, 1, 1]))["score"] == 50
    assert glue.score("matthews", np.zeros((4, 2)), np.array([0, 0, 1, 1]))["score"] == 0


# --- what is missing -------------------------------------------------------------------------------------------


def _mirror(folder: Path, source: Path) -> Path:
    shutil.copytree(source / "results/smoke/world/datasets/world/glue", folder / "datasets/nyu-mll/glue")
    from ether import foundation

    shutil.copytree(foundation.path("language-encoder"), folder / "models/sentence-transformers/all-MiniLM-L6-v2")
    return folder


def test_a_part_of_a_split_serves_as_a_tuning_split(workplace, tmp_path):
    mirror = _mirror(tmp_path / "mirror", workplace)
    source = hub.data_source({"path": "nyu-mll/glue", "revision": "main"}, {"mirror": str(mirror)}, tmp_path)
    whole, first, last = (hub.load_split(source, "rte", f"train{part}", ("label",), "x") for part in ("", "[:-20]", "[-20:]"))
    assert len(last) == 20 and [*first["idx"], *last["idx"]] == whole["idx"][:]
    tuned = config.runs(config.load("paper", {"mirror": str(mirror)}), "glue_rates")[0]
    assert glue.Glue()._splits(tuned) == ("train[:-500]", "train[-500:]")


def test_a_folder_of_safetensors_serves_where_the_hub_has_another_format(tmp_path):
    wanted = {"path": "facebook/dino-vits16", "weights": "bin", "subfolder": "inner"}
    source = hub.Source("facebook/dino-vits16", tmp_path)
    assert not source.safetensors(wanted) and not hub.Source("facebook/dino-vits16", revision="abc").safetensors(wanted)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "model.safetensors").touch()
    assert source.safetensors(wanted)
    assert not source.safetensors(wanted | {"subfolder": ""}) and source.safetensors({"path": "x"})


def test_a_mirror_stands_in_for_the_hub(workplace, tmp_path):
    mirror = _mirror(tmp_path / "mirror", workplace)
    overrides = {"mirror": str(mirror), "methods": "p-adapter", "tasks": "rte"}
    # The stand-in encoder is a DeBERTa, whose head has another name than BERT's: reported before anything is loaded.
    with pytest.raises(EtherError, match=r"Unknown head module 'bert.pooler'.*pooler"):
        check.check("laptop", ["glue"], overrides)


def test_what_a_mirror_lacks_is_named(workplace, tmp_path):
    mirror = _mirror(tmp_path / "mirror", workplace)
    overrides = {"mirror": str(mirror), "methods": "lora", "tasks": "rte"}
    frame = pd.read_parquet(mirror / "datasets/nyu-mll/glue/rte/train.parquet")
    frame.rename(columns={"sentence2": "hypothesis"}).to_parquet(mirror / "datasets/nyu-mll/glue/rte/train.parquet")
    with pytest.raises(MissingResourceError, match="no column 'sentence2'; it has .*hypothesis"):
        check.check("laptop", ["glue"], overrides)
    frame.to_parquet(mirror / "datasets/nyu-mll/glue/rte/train.parquet")
    (mirror / "datasets/nyu-mll/glue/rte/validation.parquet").unlink()
    with pytest.raises(MissingResourceError, match="no split 'validation' of 'rte'.*It has: train"):
        check.check("laptop", ["glue"], overrides)
    shutil.rmtree(mirror / "models")
    with pytest.raises(MissingResourceError, match="mirror has no models/sentence-transformers/all-MiniLM-L6-v2"):
        check.check("laptop", ["glue"], overrides)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "is gated. Request access"),
        ("RepositoryNotFoundError", "There is no model"),
        ("RevisionNotFoundError", "no such revision"),
        ("LocalEntryNotFoundError", "hub cannot be reached"),
    ],
)
def test_hub_errors_become_one_paragraph(kind, message):
    import httpx
    from huggingface_hub import errors as hub_errors

    response = httpx.Response(403, request=httpx.Request("GET", "https://example.invalid"))
    error_class = getattr(hub_errors, kind)
    error = error_class("no") if kind == "LocalEntryNotFoundError" else error_class("no", response=response)
    source = hub.Source("meta-llama/Llama-2-7b-hf", None, "abc")
    with pytest.raises(MissingResourceError, match=message) as raised, hub.explained(source, "model", "x.model.path"):
        try:
            raise error
        except Exception as cause:  # transformers wraps them
            raise OSError("We couldn't load it") from cause
    assert "meta-llama/Llama-2-7b-hf" in str(raised.value) and "--config mirror=FOLDER" in str(raised.value)


def test_a_block_count_that_divides_nothing_is_found_before_training(workplace, monkeypatch):
    every = config.methods()
    every["ether"]["adapt"]["config"]["n_blocks"] = 7
    monkeypatch.setattr(config, "methods", lambda: every)
    with pytest.raises(EtherError, match="7"):
        check.check("smoke", ["glue"], {"methods": "ether", "tasks": "rte"})
