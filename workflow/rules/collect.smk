# From the jobs' parquet to the tables and figures: CPU, seconds, never training.


def run_files(experiment):
    if experiment not in JOBS:
        raise WorkflowError(
            f"Scale {SCALE_NAME!r} has no experiment {experiment!r} with these settings: either the scale leaves it out, or "
            "none of the methods or tasks given by --config belongs to it."
        )
    return [f"{RESULTS}/runs/{experiment}/{job}/{file}.parquet" for job in JOBS[experiment] for file in ("metrics", "runs")]


rule collect:
    input:
        lambda wildcards: run_files(wildcards.experiment),
    output:
        RESULTS + "/metrics/{experiment}.parquet",
        RESULTS + "/metrics/{experiment}.runs.parquet",
    params:
        folders=lambda wildcards: [f"{RESULTS}/runs/{wildcards.experiment}/{job}" for job in JOBS[wildcards.experiment]],
    shell:
        "{sys.executable} -m ether.results {RESULTS}/metrics/{wildcards.experiment} {params.folders}"


def experiment_files(wildcards):
    return [
        f"{RESULTS}/metrics/{experiment}.{suffix}"
        for experiment in EXHIBITS[wildcards.exhibit]
        for suffix in ("parquet", "runs.parquet")
    ]


def modules(wildcards):
    """What an exact exhibit is computed from; the others are as new as their metrics."""
    if EXHIBITS[wildcards.exhibit]:
        return []
    if wildcards.exhibit.startswith("figure"):
        return ["ether/reflection.py"]
    settings = wildcards.exhibit in ("table7", "table8")
    folders = ["ether/paper", *(["workflow/methods", "workflow/scales"] if settings else ["ether/measures"])]
    files = [f"{folder}/{name}" for folder in folders for name in os.listdir(folder) if name.endswith((".py", ".yaml"))]
    return sorted(files + ([] if settings else MODULES))


rule table:
    input:
        experiment_files,
        modules,
        "ether/tables.py",
        "ether/paper/published.yaml",
        notebook="notebooks/{exhibit}.ipynb",
    output:
        multiext(RESULTS + "/tables/{exhibit}", ".parquet", ".csv", ".md"),
    log:
        notebook=RESULTS + "/notebooks/{exhibit}.ipynb",
    params:
        parameters=json.dumps({"scale": SCALE_NAME, "overrides": OVERRIDES}),
    shell:
        "{sys.executable} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"


rule figure:
    input:
        experiment_files,
        modules,
        "ether/plots.py",
        "ether/plots_language.py",
        "ether/plots_subject.py",
        notebook="notebooks/{exhibit}.ipynb",
    output:
        multiext(RESULTS + "/figures/{exhibit}", ".png", ".pdf", ".parquet"),
    log:
        notebook=RESULTS + "/notebooks/{exhibit}.ipynb",
    params:
        parameters=json.dumps({"scale": SCALE_NAME, "overrides": OVERRIDES}),
    shell:
        "{sys.executable} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"


def exhibit_files(exhibit):
    if exhibit.startswith("figure"):
        return [f"{RESULTS}/figures/{exhibit}.{ending}" for ending in ("png", "pdf", "parquet")]
    return [f"{RESULTS}/tables/{exhibit}.{ending}" for ending in ("parquet", "csv", "md")]


def wanted(exhibit):
    """What a target asks for: its files, and every run behind them. Without the runs Snakemake would not make a
    deleted one again as long as the finished table is newer than all that is left."""
    return exhibit_files(exhibit) + [file for experiment in EXHIBITS[exhibit] for file in run_files(experiment)]


for exhibit in EXHIBITS:

    rule:
        name: exhibit
        input:
            lambda wildcards, exhibit=exhibit: wanted(exhibit),


def possible(figures):
    """The exhibits, figures or tables, whose experiments the scale has."""
    return [
        wanted(exhibit)
        for exhibit, experiments in EXHIBITS.items()
        if exhibit.startswith("figure") == figures and all(experiment in JOBS for experiment in experiments)
    ]


rule tables:
    input:
        possible(figures=False),


rule figures:
    input:
        possible(figures=True),


def whereabouts():
    """What the user finds where, said when a run of the workflow has ended well."""
    lines = [f"\nScale {SCALE_NAME!r}: {SCALE.settings['description']}."]
    for exhibit, experiments in EXHIBITS.items():
        if all(os.path.exists(file) for file in exhibit_files(exhibit)):
            lines.append(f"  {exhibit:10} {'  '.join(exhibit_files(exhibit))}")
            lines.append(f"  notebook   {RESULTS}/notebooks/{exhibit}.ipynb")
            if experiments:
                lines.append("  metrics    " + "  ".join(f"{RESULTS}/metrics/{name}.parquet" for name in experiments))
    return "\n".join(lines)
