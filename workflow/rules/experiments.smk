# The jobs that train. One executed notebook each; which runs share a job is said by the scale.

JOBS = {
    experiment: ether_config.jobs(SCALE, experiment)
    for experiment in ether_config.EXPERIMENTS
    if experiment in SCALE.settings
}

# Snakemake does not look inside an imported package: the modules a number depends on are named here.
MODULES = [
    "ether/reflection.py",
    *sorted(f"ether/tuners/{name}" for name in os.listdir("ether/tuners") if name.endswith(".py")),
    "ether/methods.py",
    "ether/training.py",
    "ether/run.py",
]


rule check:
    # Before anything is trained: parameters, block counts, files, columns, GPU, disk.
    input:
        world=world_files(),
        foundation=foundation_files(),
    output:
        RESULTS + "/checked/{experiment}.json",
    params:
        overrides=json.dumps(OVERRIDES),
        digest=lambda wildcards: [job.digest for job in JOBS[wildcards.experiment].values()],
    shell:
        "{sys.executable} -m ether.check {SCALE_NAME} {wildcards.experiment}"
        " --overrides {params.overrides:q} --output {output}"


rule experiment:
    input:
        modules=MODULES,
        module="ether/experiments/{experiment}.py",
        notebook=ancient("notebooks/{experiment}.ipynb"),  # how the numbers are shown does not change them
        world=world_files(),
        foundation=foundation_files(),
        checked=ancient(RESULTS + "/checked/{experiment}.json"),
    output:
        RESULTS + "/runs/{experiment}/{job}/metrics.parquet",
        RESULTS + "/runs/{experiment}/{job}/runs.parquet",
    log:
        notebook=RESULTS + "/notebooks/runs/{experiment}/{job}.ipynb",
    params:
        digest=lambda wildcards: JOBS[wildcards.experiment][wildcards.job].digest,
        parameters=lambda wildcards: json.dumps(
            {"scale": SCALE_NAME, "job": wildcards.job, "overrides": OVERRIDES}
        ),
    threads: SCALE.settings["threads"]
    resources:
        gpu=1 if SCALE.settings["device"] == "cuda" else 0,
    shell:
        "ETHER_THREADS={threads} OMP_NUM_THREADS={threads} OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false"
        " {sys.executable} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"
