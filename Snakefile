# The paper as a workflow: `snakemake --cores 1 table4`, `--config scale=smoke|small|laptop|paper mirror=FOLDER …`.
# Settings are in workflow/scales and workflow/methods; workflow/experiments.yaml and workflow/exhibits.yaml list the targets.
import contextlib
import functools
import io
import json
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)  # import the package from this checkout, even if it is not installed

from snakemake.cli import parse_args
from snakemake.exceptions import WorkflowError

from ether import config as ether_config
from ether import progress, results, sources, targets
from ether.errors import EtherError

SCALE_NAME = str(config.get("scale", "small") or "")  # `scale=` is None
OVERRIDES = {key: value for key, value in config.items() if key != "scale"}
try:
    SCALE = ether_config.load(SCALE_NAME, OVERRIDES)
    EXPERIMENTS, EXHIBITS = ether_config.experiments(), ether_config.exhibits()
    JOBS = {name: ether_config.jobs(SCALE, name) for name in SCALE.experiments()}
    if not workflow.output_settings.dryrun:
        results.check_writable(SCALE.results)  # Snakemake's own error for a read-only folder is a stack trace
except EtherError as error:
    raise WorkflowError(str(error))
RESULTS = str(SCALE.results)
progress.attach(workflow)


wildcard_constraints:
    exhibit="|".join(EXHIBITS),
    experiment="|".join(EXPERIMENTS),


include: "workflow/rules/worlds.smk"
include: "workflow/rules/foundation.smk"
include: "workflow/rules/experiments.smk"
include: "workflow/rules/exhibits.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        rules.tables.input,
        rules.figures.input,
        rules.claims.output,


# At the end, because the rules are known targets.
try:
    CHECKED = targets.check(of_this_command(), [rule.name for rule in workflow.rules], SCALE)
except EtherError as error:
    raise WorkflowError(str(error))
if notice := CHECKED.notice(SCALE):
    print(notice, file=sys.stderr)


onstart:
    # Under Snakemake's default limit of 100 jobs a second, every step of its scheduler starts a timer for the next step, and
    # every finished job adds one more. While jobs wait for a core, the steps take more and more time from the jobs that run
    # (most of a core after 30 jobs). A limit of one's own, by --max-jobs-per-timespan, is kept.
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


onsuccess:
    print(where_results_are())


onerror:
    print("\nWhat is finished is kept: the same command continues from there. The executed notebooks, the failed one")
    print(f"included, are under {RESULTS}/notebooks/.")
