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

IMAGES = ["ether/measures/images.py", "ether/measures/geometry.py", "ether/experiments/subject.py"]
OWN_MODULES = {
    "instruct": ["ether/measures/language.py", "ether/measures/language_tasks.py"],
    "subject": IMAGES,
    "perturbation": IMAGES,
}


def experiment_modules(experiment):
    """The code behind one experiment's numbers, beyond what is behind all."""
    runs_in = ether_config.EXPERIMENTS[experiment]
    return sorted({f"ether/experiments/{runs_in}.py", *OWN_MODULES.get(runs_in, [])})


def in_shell(value, keep=()):
    """JSON for a shell command, quoted, its braces kept from Snakemake's formatting; those in `keep` alone are formatted.

    As part of the command it does not count as a parameter: a job is made again for its own `digest`, not because the
    list of methods beside it has changed.
    """
    text = shlex.quote(json.dumps(value)).replace("{", "{{").replace("}", "}}")
    for name in keep:
        text = text.replace("{" + name + "}", name)
    return text


rule check:
    # Before the first job trains: parameters, block counts, files, columns, GPU, disk. Done once; what changes later is
    # checked by its own job before that trains. (No `params` here: Snakemake 9 drops a job whose output is missing when
    # an `ancient` input of it is about to be made again for changed params.)
    input:
        world=lambda wildcards: world_files(wildcards.experiment),
        foundation=lambda wildcards: foundation_files(wildcards.experiment),
    output:
        RESULTS + "/checked/{experiment}.json",
    shell:
        "{sys.executable} -m ether.check {SCALE_NAME} {wildcards.experiment} --output {output} --overrides "
        + in_shell(OVERRIDES)


rule experiment:
    input:
        modules=MODULES,
        own=lambda wildcards: experiment_modules(wildcards.experiment),
        # how the numbers are shown does not change them
        notebook=lambda wildcards: ancient(f"notebooks/{ether_config.EXPERIMENTS[wildcards.experiment]}.ipynb"),
        world=lambda wildcards: world_files(wildcards.experiment),
        foundation=lambda wildcards: foundation_files(wildcards.experiment),
        checked=ancient(RESULTS + "/checked/{experiment}.json"),
    output:
        RESULTS + "/runs/{experiment}/{job}/metrics.parquet",
        RESULTS + "/runs/{experiment}/{job}/runs.parquet",
    log:
        notebook=RESULTS + "/notebooks/runs/{experiment}/{job}.ipynb",
    params:
        digest=lambda wildcards: JOBS[wildcards.experiment][wildcards.job].digest,
    threads: SCALE.settings["threads"]
    resources:
        gpu=1 if SCALE.settings["device"] == "cuda" else 0,
    shell:
        "ETHER_THREADS={threads} OMP_NUM_THREADS={threads} OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false"
        " {sys.executable} -m ether.notebook {input.notebook} {log.notebook} --parameters "
        + in_shell(
            {"scale": SCALE_NAME, "experiment": "{wildcards.experiment}", "job": "{wildcards.job}", "overrides": OVERRIDES},
            keep=("{wildcards.experiment}", "{wildcards.job}"),
        )
