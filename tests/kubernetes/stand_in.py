"""Tries the profile for Kubernetes on a stand-in for a cluster: ``python tests/kubernetes/stand_in.py``.

    pip install ".[cluster]"

With `kubectl` of this folder, which runs a job's command as a process of this machine, and `profiles/kubernetes` as it is but
for the path of the volume, makes Table 4 at smoke scale twice: without disturbance, and with SIGKILL of a pod that is training.
Compares the numbers. The exit status is 1 if the second workflow does not end with those of the first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import clusters

HERE = Path(__file__).resolve().parent


def mounted(folder: Path) -> Path:
    """A copy of the project whose pods have the volume where the copy is."""
    job = clusters.copy(folder) / "profiles/kubernetes/job.yaml"
    job.write_text(job.read_text().replace("mountPath: /project", f"mountPath: {folder}"))
    return folder


def main() -> int:
    """The two workflows."""
    with tempfile.TemporaryDirectory(prefix="stand-in-") as temporary:
        base = Path(temporary)
        state = base / "state"

        def start(folder: Path) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "snakemake", "--profile", "profiles/kubernetes", "table4", "--config", "scale=smoke"]
            command += ["--set-resources", "experiment:gpu=1", "--latency-wait", "5"]  # a GPU that the scale does not need
            path = os.pathsep.join([str(HERE), str(Path(sys.executable).parent), os.environ["PATH"]])
            environment = os.environ | {"PYTHONPATH": str(folder), "PATH": path, "KUBECTL_STATE": str(state)}
            with (folder / "workflow.log").open("wb") as output:
                return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)

        def lose() -> str:
            for pod in state.glob("ether-experiment*"):
                if not (pod / "exit").exists():
                    os.killpg(int((pod / "pid").read_text()), signal.SIGKILL)
                    (pod / "exit").write_text("137")
                    return f"the pod of {pod.name}"
            return ""

        return clusters.compare(mounted(base / "quiet"), mounted(base / "disturbed"), start, lose)


if __name__ == "__main__":
    raise SystemExit(main())
