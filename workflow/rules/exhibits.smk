# From collected metrics to tables and figures: CPU, seconds, never training. With `--config replay=FOLDER` the metrics are those
# stored in FOLDER, and no experiment is run.


def metrics_of(experiment, folder):
    return [f"{folder}/{experiment}.{ending}" for ending in ("parquet", "runs.parquet")]


def experiment_files(wildcards):
    """The collected metrics an exhibit reads: made here, or stored in the replay folder."""
    return [file for name in EXHIBITS[wildcards.exhibit].experiments for file in metrics_of(name, SCALE.metrics_folder)]


def optional_files(wildcards):
    """The metrics an exhibit shows where they are there: made here earlier, or committed for reading."""
    found = []
    for name in EXHIBITS[wildcards.exhibit].optional:
        for folder in (SCALE.metrics_folder, f"results/published/{SCALE_NAME}/metrics"):
            if all(os.path.exists(file) for file in metrics_of(name, folder)):
                found += metrics_of(name, folder)
                break
    return found


def exhibit_code(wildcards):
    """The code and settings an exhibit is computed from."""
    made_by = EXHIBITS[wildcards.exhibit].module
    claims = f"ether.paper.claims.{made_by}"
    modules = ["ether.exhibits.report", f"ether.exhibits.{made_by}", *([claims] if sources.module_file(claims) else [])]
    settings = [str(file) for folder in ("methods", "scales") for file in Path("workflow", folder).glob("*.yaml")]
    return [*sources.closure(*modules), *sorted(settings), "workflow/exhibits.yaml", "workflow/experiments.yaml"]


rule table:
    input:
        experiment_files,
        optional_files,
        exhibit_code,
        notebook="notebooks/{exhibit}.ipynb",
    output:
        multiext(RESULTS + "/tables/{exhibit}", ".parquet", ".csv", ".md", ".claims.parquet"),
    log:
        notebook=RESULTS + "/notebooks/{exhibit}.ipynb",
    params:
        parameters=json.dumps({"scale": SCALE_NAME, "overrides": OVERRIDES}),
    shell:
        "{sys.executable} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"


use rule table as figure with:
    output:
        multiext(RESULTS + "/figures/{exhibit}", ".png", ".pdf", ".parquet", ".claims.parquet"),
    log:
        notebook=RESULTS + "/notebooks/{exhibit}.ipynb",


def targets(exhibit):
    """What a target asks for: its files, and every run behind them. Without the runs Snakemake would not make a
    deleted one again as long as the finished table is newer than all that is left."""
    files = [str(file) for file in exhibit.files(SCALE.results)]
    return files + [file for name in exhibit.experiments if SCALE.replay is None for file in run_files(name)]


for exhibit in EXHIBITS.values():

    rule:
        name: exhibit.id
        input:
            lambda wildcards, exhibit=exhibit: targets(exhibit),


def available(exhibit):
    """Whether the experiments it reads are there: the scale has them, or the replay folder."""
    if SCALE.replay is None:
        return all(name in JOBS for name in exhibit.experiments)
    return all(os.path.exists(file) for name in exhibit.experiments for file in metrics_of(name, SCALE.metrics_folder))


rule tables:
    input:
        [targets(exhibit) for exhibit in EXHIBITS.values() if exhibit.kind == "table" and available(exhibit)],


rule figures:
    input:
        [targets(exhibit) for exhibit in EXHIBITS.values() if exhibit.kind == "figure" and available(exhibit)],


def where_results_are():
    """What the user finds where, printed when a run of the workflow has ended well."""
    lines = [f"\nScale {SCALE_NAME!r}: {SCALE.settings['description']}."]
    for exhibit in EXHIBITS.values():
        files = exhibit.files(SCALE.results)
        if all(file.exists() for file in files):
            lines.append(f"  {exhibit.id:10} {'  '.join(map(str, files))}")
            lines.append(f"  notebook   {RESULTS}/notebooks/{exhibit.id}.ipynb")
            if exhibit.experiments:
                lines.append("  metrics    " + "  ".join(f"{SCALE.metrics_folder}/{name}.parquet" for name in exhibit.experiments))
    return "\n".join(lines)
