"""Jobs of Snakemake as Kubernetes jobs, through kubectl; called by the profile in this folder.

pods.py submit --cpus N --memory MB --gpus N --minutes N SCRIPT   # creates a job from job.yaml, prints its name
pods.py status NAME                                               # prints running, success or failed
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).parent / "job.yaml"
GPU = "nvidia.com/gpu"


def kubectl(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs kubectl with text as its standard input."""
    try:
        return subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit("kubectl is not installed: profiles/kubernetes needs it, with access to a cluster.") from None


def manifest(script: str, rule: str, cpus: int, memory: int, gpus: int, minutes: int, folder: Path) -> dict[str, Any]:
    """The template with what belongs to one job of Snakemake.

    Args:
        script: Snakemake's script of the job.
        rule: its rule, which begins the name.
        cpus: number of CPUs.
        memory: in MB.
        gpus: number of GPUs; 0 requests none.
        minutes: time limit.
        folder: the working folder.

    Raises:
        SystemExit: the template mounts no volume above the working folder, so that the pod would not find the project.
    """
    job: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    container = job["spec"]["template"]["spec"]["containers"][0]
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    if not any(folder.is_relative_to(mount) for mount in mounts):
        raise SystemExit(
            f"The project is in {folder}, but the pods' volumes are mounted at {', '.join(mounts) or 'no path'}: mount the "
            f"volume with the project at the same path here and in {TEMPLATE}."
        )
    name = re.sub(r"[^a-z0-9]+", "-", rule.lower()).strip("-")[:30]
    job["metadata"] = job.get("metadata", {}) | {"generateName": f"ether-{name}-" if name else "ether-"}
    job["spec"]["activeDeadlineSeconds"] = 60 * minutes
    container["command"], container["workingDir"] = ["/bin/bash", script], str(folder)
    # Kubernetes accepts GPUs only with equal requests and limits. A job may use more CPUs than it asks for, as on one machine.
    requests = {"cpu": str(cpus), "memory": f"{memory}M"}
    limits = {"memory": f"{memory}M"}
    if gpus:
        requests[GPU] = limits[GPU] = str(gpus)
    container["resources"] = {"requests": requests, "limits": limits}
    return job


def submit(options: argparse.Namespace) -> int:
    """Creates a job and prints its name."""
    script = str(Path(options.script).resolve())
    job = manifest(script, options.name, options.cpus, options.memory, options.gpus, options.minutes, Path.cwd())
    made = kubectl("create", "-f", "-", "-o", "name", given=json.dumps(job))
    if made.returncode:
        print(f"kubectl could not create a job: {made.stderr.strip()}", file=sys.stderr)
        return 1
    print(made.stdout.strip().rpartition("/")[2])
    return 0


def status(options: argparse.Namespace) -> int:
    """Prints the state of a job. One that is not there any more has failed; when kubectl fails, it may still be running."""
    found = kubectl("get", "job", options.name, "-o", "json")
    if found.returncode:
        print("failed" if "NotFound" in found.stderr else "running")
        return 0
    state = json.loads(found.stdout).get("status", {})
    conditions = {one["type"] for one in state.get("conditions", []) if one["status"] == "True"}
    if "Failed" in conditions or state.get("failed"):
        print("failed")
    else:
        print("success" if "Complete" in conditions or state.get("succeeded") else "running")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Jobs of Snakemake as Kubernetes jobs.")
    commands = parser.add_subparsers(required=True)
    creating = commands.add_parser("submit")
    creating.add_argument("script")
    creating.add_argument("--name", default="")
    for name in ("cpus", "memory", "gpus", "minutes"):
        creating.add_argument(f"--{name}", type=int, required=True)
    creating.set_defaults(action=submit)
    asking = commands.add_parser("status")
    asking.add_argument("name")
    asking.set_defaults(action=status)
    options = parser.parse_args(arguments)
    result: int = options.action(options)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
