"""The profile for Kubernetes, with a stand-in for kubectl that runs a job's command as a process of this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from test_workflow import project

ROOT = Path(__file__).resolve().parent.parent
PROFILE, STAND_IN = ROOT / "profiles/kubernetes", ROOT / "tests/kubernetes"


@pytest.fixture(scope="module")
def pods() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pods", PROFILE / "pods.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's state."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(STAND_IN), str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("KUBECTL_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def asked(resources: dict[str, object]) -> dict[str, int]:
    """What the profile's submit command asks for a job: the numbers in it, with the profile's defaults."""
    profile = yaml.safe_load((PROFILE / "config.yaml").read_text())
    values = profile["default-resources"] | resources
    return {name: int(values[key]) for name, key in (("memory", "mem_mb"), ("gpus", "gpu"), ("minutes", "runtime"))}


def test_a_job_asks_for_cpus_memory_gpus_and_time_and_has_the_volume(pods: ModuleType) -> None:
    job = pods.manifest("/project/job.sh", "experiment_with_samples", cpus=4, folder=Path("/project/ether"), **asked({"gpu": 2}))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["/bin/bash", "/project/job.sh"] and container["workingDir"] == "/project/ether"
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "32000M", "nvidia.com/gpu": "2"},
        "limits": {"memory": "32000M", "nvidia.com/gpu": "2"},
    }
    assert job["spec"]["activeDeadlineSeconds"] == 1440 * 60
    assert job["spec"]["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"  # Snakemake retries
    assert job["metadata"]["generateName"] == "ether-experiment-with-samples-" and job["metadata"]["labels"] == {"app": "ether"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    without = pods.manifest("job.sh", "", cpus=1, folder=Path("/project"), **asked({}))
    assert "nvidia.com/gpu" not in json.dumps(without)


def test_a_project_outside_the_volume_is_refused_before_anything_is_created(pods: ModuleType, cluster: Path) -> None:
    with pytest.raises(SystemExit, match="mounted at /project: mount the volume with the project at the same path"):
        pods.manifest("job.sh", "table", cpus=1, folder=Path("/home/me/ether"), **asked({}))
    assert not cluster.exists()


def test_states(pods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "job.yaml"
    template.write_text((PROFILE / "job.yaml").read_text().replace("/project", str(tmp_path)))
    monkeypatch.setattr(pods, "TEMPLATE", template)
    monkeypatch.chdir(tmp_path)

    def submit(text: str) -> str:
        (tmp_path / "job.sh").write_text(text)
        arguments = ["--name", "table", "--cpus", "1", "--memory", "1000", "--gpus", "1", "--minutes", "5"]
        assert pods.main(["submit", *arguments, "job.sh"]) == 0
        return capsys.readouterr().out.strip()

    def state(name: str) -> str:
        pods.main(["status", name])
        return capsys.readouterr().out.strip()

    def ended(name: str) -> str:
        subprocess.run(["tail", "--pid", (tmp_path / "state" / name / "pid").read_text(), "-f", "/dev/null"], check=True)
        return state(name)

    assert ended(submit("exit 0")) == "success"
    assert ended(submit("exit 3")) == "failed"
    name = submit("sleep 600")
    assert state(name) == "running"
    subprocess.run([PROFILE / "cancel", name, "of-a-job-that-is-gone"], check=True)
    assert state(name) == "failed"  # not found any more
    (tmp_path / "kubectl").write_text("#!/bin/sh\necho 'Unable to connect to the server' >&2\nexit 1\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state(name) == "running"  # it may be
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(SystemExit, match="kubectl is not installed"):
        state(name)


@pytest.mark.dag(minutes=1)
def test_a_table_is_made_in_a_pod(tmp_path: Path, cluster: Path) -> None:
    folder = project(tmp_path / "clone")
    template = folder / "profiles/kubernetes/job.yaml"
    template.write_text(template.read_text().replace("mountPath: /project", f"mountPath: {folder}"))
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/kubernetes", "--latency-wait", "5", "table7"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert (folder / "results/small/tables/table7.parquet").is_file()
    (pod,) = cluster.iterdir()
    job = json.loads((pod / "job.json").read_text())
    assert pod.name.startswith("ether-table-") and "nvidia.com/gpu" not in json.dumps(job)
