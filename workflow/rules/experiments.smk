# The jobs that train. A job is one executed notebook; the scale determines which runs share a job.


def code_files(experiment):
    """The code that an experiment's numbers depend on: all modules that its module and `ether.run` import."""
    return sources.closure("ether.run", f"ether.experiments.{EXPERIMENTS[experiment].module}")


rule check:
    # Checks parameters, block counts, files, columns, GPU and disk space once, before the first job trains. Every job also checks
    # its own runs before it trains. (It has no `params` and only `ancient` inputs, so that it is not made again. For the jobs it
    # is not `ancient`: if an interrupted check is made again, Snakemake 9 does not run a job for which it is, and ends with
    # success without the results.)
    input:
        world=lambda wildcards: ancient(world_files(wildcards.experiment)),
        foundation=lambda wildcards: ancient(foundation_files(wildcards.experiment)),
    output:
        RESULTS + "/checked/{experiment}.json",
    shell:
        "{sys.executable:q} -m ether.check {SCALE_NAME} {wildcards.experiment} --output {output} --overrides "
        + in_shell(OVERRIDES)


rule experiment:
    input:
        code=lambda wildcards: code_files(wildcards.experiment),
        data=lambda wildcards: EXPERIMENTS[wildcards.experiment].data_files(Path(".")),
        # the presentation of the numbers does not change them
        notebook=lambda wildcards: ancient(EXPERIMENTS[wildcards.experiment].notebook),
        world=lambda wildcards: world_files(wildcards.experiment),
        foundation=lambda wildcards: foundation_files(wildcards.experiment),
        checked=RESULTS + "/checked/{experiment}.json",
    output:
        RESULTS + "/runs/{experiment}/{job}/metrics.parquet",
        RESULTS + "/runs/{experiment}/{job}/runs.parquet",
    wildcard_constraints:
        experiment="|".join(name for name, entry in EXPERIMENTS.items() if not entry.samples),
    log:
        notebook=RESULTS + "/notebooks/runs/{experiment}/{job}.ipynb",
    params:
        digest=lambda wildcards: JOBS[wildcards.experiment][wildcards.job].digest,
    threads: SCALE.settings["threads"]
    resources:
        gpu=SCALE.settings["processes"] if SCALE.settings["device"] == "cuda" else 0,
    shell:
        "ETHER_THREADS={threads} OMP_NUM_THREADS={threads} OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false"
        " {sys.executable:q} -m ether.notebook {input.notebook} {log.notebook} --parameters "
        + in_shell(
            {"scale": SCALE_NAME, "experiment": "{wildcards.experiment}", "job": "{wildcards.job}", "overrides": OVERRIDES},
            keep=("{wildcards.experiment}", "{wildcards.job}"),
        )


use rule experiment as experiment_with_samples with:
    output:
        RESULTS + "/runs/{experiment}/{job}/metrics.parquet",
        RESULTS + "/runs/{experiment}/{job}/runs.parquet",
        directory(RESULTS + "/samples/{experiment}/{job}"),
    wildcard_constraints:
        experiment="|".join(name for name, entry in EXPERIMENTS.items() if entry.samples),
    log:
        notebook=RESULTS + "/notebooks/runs/{experiment}/{job}.ipynb",


def run_files(experiment):
    """The output files of an experiment's runs.

    Raises:
        WorkflowError: this scale, with the command line's settings, does not have the experiment.
    """
    if experiment not in JOBS:
        raise WorkflowError(
            f"Scale {SCALE_NAME!r} has no experiment {experiment!r} with these settings: either the scale leaves it out, or "
            "none of the methods or tasks given by --config belongs to it."
        )
    files = [f"{RESULTS}/runs/{experiment}/{job}/{name}.parquet" for job in JOBS[experiment] for name in ("metrics", "runs")]
    return files + [f"{RESULTS}/samples/{experiment}/{job}" for job in JOBS[experiment] if EXPERIMENTS[experiment].samples]


rule collect:
    input:
        lambda wildcards: run_files(wildcards.experiment),
    output:
        RESULTS + "/metrics/{experiment}.parquet",
        RESULTS + "/metrics/{experiment}.runs.parquet",
    params:
        folders=lambda wildcards: [f"{RESULTS}/runs/{wildcards.experiment}/{job}" for job in JOBS[wildcards.experiment]],
    shell:
        "{sys.executable:q} -m ether.results {RESULTS}/metrics/{wildcards.experiment} {params.folders}"
