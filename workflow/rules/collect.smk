# From the jobs' parquet to the tables and figures: CPU, seconds, never training.


def run_files(experiment):
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


rule table:
    input:
        experiment_files,
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
        "ether/plots.py",
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
    kind, endings = ("tables", ("parquet", "csv", "md")) if exhibit.startswith("table") else ("figures", ("png", "pdf"))
    return [f"{RESULTS}/{kind}/{exhibit}.{ending}" for ending in endings]


def wanted(exhibit):
    """What a target asks for: its files, and every run behind them. Without the runs Snakemake would not make a
    deleted one again as long as the finished table is newer than all that is left."""
    return exhibit_files(exhibit) + [file for experiment in EXHIBITS[exhibit] for file in run_files(experiment)]


for exhibit in EXHIBITS:

    rule:
        name: exhibit
        input:
            wanted(exhibit),


rule tables:
    input:
        [wanted(exhibit) for exhibit in EXHIBITS if exhibit.startswith("table")],


rule figures:
    input:
        [wanted(exhibit) for exhibit in EXHIBITS if exhibit.startswith("figure")],


def whereabouts():
    """What the user finds where, said when a run of the workflow has ended well."""
    lines = [f"\nScale {SCALE_NAME!r}: {SCALE.settings['description']}."]
    for exhibit, experiments in EXHIBITS.items():
        if all(os.path.exists(file) for file in exhibit_files(exhibit)):
            lines.append(f"  {exhibit:9} {'  '.join(exhibit_files(exhibit))}")
            lines.append(f"  notebook  {RESULTS}/notebooks/{exhibit}.ipynb")
            lines.append("  metrics   " + "  ".join(f"{RESULTS}/metrics/{name}.parquet" for name in experiments))
    return "\n".join(lines)
