"""Tries the profile for Slurm on a cluster of one node, made of Debian's packages: ``python tests/slurm/one_node.py``, as root.

    apt-get install slurmctld slurmd slurm-client munge
    pip install ".[cluster]"

Starts munge, Slurm's controller and its daemon, with a partition `gpu` and one GPU that does not exist, so that
`profiles/slurm` is used as it is. Their files are in a temporary folder, with links in /etc/slurm, where Slurm's commands
look inside a job. In a copy of the project it then makes Table 4 at smoke scale twice: without disturbance, and with
`scancel` of a job that is training. Prints what happened, compares the numbers, and stops all daemons. The exit status is 1
if the second workflow does not end with the numbers of the first.

It is not part of the tests, because it needs root and daemons. With ``--keep`` the folder with all logs is kept.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import clusters

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue")
ETC, FILES = Path("/etc/slurm"), ("slurm.conf", "gres.conf")
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
GresTypes=gpu
NodeName={host} CPUs={cpus} RealMemory=64000 Gres=gpu:1 State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """munged, slurmctld and slurmd in the foreground, as children of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, socket.gethostname()
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        munge = self.folder / "munge"
        for part in (munge, self.folder / "state", self.folder / "spool"):
            part.mkdir(mode=0o700)
        (munge / "key").write_bytes(secrets.token_bytes(1024))
        (munge / "key").chmod(0o400)
        munge.chmod(0o711)
        text = CONFIGURATION.format(host=self.host, folder=self.folder, cpus=os.cpu_count())
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        ETC.mkdir(exist_ok=True)
        for name in FILES:
            (ETC / name).symlink_to(self.folder / name)
        files = [f"--{name}={munge / name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self._start("munged", "--foreground", "--force", f"--key-file={munge / 'key'}", *files)
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        for _ in range(60):
            time.sleep(1)
            state = self.run("sinfo", "--noheader", "--format=%T").strip()
            if state == "idle":
                return self
        self.__exit__()
        raise SystemExit(f"The node is {state or 'not there'} after a minute; see the logs in {self.folder} (--keep).")

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.output").open("wb") as output:
            self.daemons.append(subprocess.Popen(command, stdout=output, stderr=output))

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for name in FILES:
            (ETC / name).unlink(missing_ok=True)

    def run(self, *command: str) -> str:
        """The output of a command of Slurm; empty if it fails."""
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def running(self) -> dict[str, str]:
        """{number: comment} of the jobs that are running; the comment names the rule and its wildcards."""
        lines = self.run("squeue", "--noheader", "--states=RUNNING", "--format=%i|%k").splitlines()
        return dict(line.strip().split("|", 1) for line in lines if "|" in line)


def workflow(folder: Path) -> subprocess.Popen[bytes]:
    """Table 4 at smoke scale through the profile, started."""
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", "table4", "--config", "scale=smoke"]
    command += ["--set-resources", "experiment:gpu=1"]  # which the scale does not need
    # Without an accounting database there is no sacct.
    command += ["--latency-wait", "20", "--slurm-init-seconds-before-status-checks", "5", "--slurm-status-command", "squeue"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    with (folder / "workflow.log").open("wb") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


def main() -> int:
    """The two workflows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    options = parser.parse_args()
    if os.geteuid() or (missing := [name for name in PROGRAMS if not shutil.which(name)]):
        raise SystemExit("This needs root." if os.geteuid() else f"Not installed: {', '.join(missing)}.")
    if any((ETC / name).exists() for name in FILES):
        raise SystemExit(f"{ETC} has a configuration already: this machine is part of a cluster.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by a signal."))  # the daemons are stopped
    base = Path(tempfile.mkdtemp(prefix="one-node-"))
    base.chmod(0o755)
    try:
        (base / "slurm").mkdir()
        with Cluster(base / "slurm") as cluster:

            def lose() -> str:
                training = {number: comment for number, comment in cluster.running().items() if "experiment" in comment}
                for number, comment in training.items():
                    cluster.run("scancel", "--signal=KILL", number)
                    return f"job {number} ({comment})"
                return ""

            return clusters.compare(clusters.copy(base / "quiet"), clusters.copy(base / "disturbed"), workflow, lose)
    finally:
        if options.keep:
            print(f"kept: {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
