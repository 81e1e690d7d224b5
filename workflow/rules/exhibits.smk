# Tables and figures from collected metrics, on the CPU in seconds and without training. With `--config replay=FOLDER` the metrics
# stored in FOLDER are used and no experiment is run.


def metrics_of(experiment, folder):
    return list(map(str, targets.metrics_of(experiment, Path(folder))))


def experiment_files(wildcards):
    """The files an exhibit reads, made here or stored in the replay folder: collected metrics, and for a figure the images."""
    exhibit = EXHIBITS[wildcards.exhibit]
    found = [file for name in exhibit.experiments for file in metrics_of(name, SCALE.metrics_folder)]
    for name in exhibit.experiments:
        if exhibit.kind == "figure" and EXPERIMENTS[name].samples and SCALE.replay is None:
            found += [f"{SCALE.samples_folder}/{name}/{job}" for job in JOBS[name]]
    return found


def of_this_command():
    """The targets of the command line; none in a process that executes a single job for another one of Snakemake."""
    settings = workflow.dag_settings
    if settings is None:  # until the Snakefile has been read, the targets are in the command line only
        if "snakemake" not in Path(sys.argv[0]).parts[-2:]:
            return set()
        with contextlib.redirect_stderr(io.StringIO()):  # it has said already which profile it uses
            _, settings = parse_args(sys.argv[1:])
    return set() if settings.target_jobs else set(settings.targets) or {"all"}


AVAILABLE = [exhibit for exhibit in EXHIBITS.values() if targets.obstacle(exhibit, SCALE) is None]


@functools.cache
def experiments_of_targets():
    """The experiments that the targets of the command line need."""
    if SCALE.replay is not None:
        return set()
    wanted = targets.wanted(of_this_command(), SCALE).values()
    return {name for exhibit in wanted if exhibit in AVAILABLE for name in exhibit.experiments}


def optional_files(wildcards):
    """The optional metrics of an exhibit: those that this workflow makes, and those that exist, made before or committed.

    Without the former, the exhibit might be made before them, and would be made again when the workflow is started again.
    """
    found = []
    for name in EXHIBITS[wildcards.exhibit].optional:
        if name in experiments_of_targets():
            found += metrics_of(name, SCALE.metrics_folder)
            continue
        for folder in (SCALE.metrics_folder, f"results/published/{SCALE_NAME}/metrics"):
            if all(os.path.exists(file) for file in metrics_of(name, folder)):
                found += metrics_of(name, folder)
                break
    return found


def exhibit_code(wildcards):
    """The code and settings that an exhibit depends on."""
    exhibit = EXHIBITS[wildcards.exhibit]
    claims = f"ether.paper.claims.{exhibit.module}"
    modules = ["ether.exhibits.report", *(f"ether.exhibits.{name}" for name in {exhibit.module, exhibit.evidence_module})]
    modules += [claims] if sources.module_file(claims) else []
    settings = [str(file) for folder in ("methods", "scales") for file in Path("workflow", folder).glob("*.yaml")]
    return [*sources.closure(*modules), *sorted(settings), "workflow/exhibits.yaml", "workflow/experiments.yaml"]


def exhibit_title(exhibit):
    """'Table 4: GLUE with DeBERTaV3-base'."""
    return importlib.import_module("ether.exhibits.common").title(exhibit)


def exhibit_labels(wildcards):
    """The label of a table or figure in Snakemake's report."""
    return {"title": exhibit_title(EXHIBITS[wildcards.exhibit])}


rule table:
    input:
        experiment_files,
        optional_files,
        exhibit_code,
        notebook="notebooks/{exhibit}.ipynb",
    output:
        multiext(RESULTS + "/tables/{exhibit}", ".parquet", ".md", ".claims.parquet"),
        report(RESULTS + "/tables/{exhibit}.csv", caption="../report/table.rst", category="Tables", labels=exhibit_labels),
    log:
        notebook=RESULTS + "/notebooks/{exhibit}.ipynb",
    params:
        parameters=json.dumps({"scale": SCALE_NAME, "overrides": OVERRIDES}),
    shell:
        "{sys.executable:q} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"


use rule table as figure with:
    output:
        report(RESULTS + "/figures/{exhibit}.png", caption="../report/figure.rst", category="Figures", labels=exhibit_labels),
        multiext(RESULTS + "/figures/{exhibit}", ".pdf", ".parquet", ".claims.parquet"),
    log:
        notebook=RESULTS + "/notebooks/{exhibit}.ipynb",


def inputs_of_target(exhibit):
    """The inputs of a target: its files, and all metrics and runs they depend on. Without these as inputs, Snakemake would not
    recreate a deleted one as long as the table is newer than the remaining files."""
    files = [str(file) for file in exhibit.files(SCALE.results)]
    for name in exhibit.experiments if SCALE.replay is None else ():
        files += [*metrics_of(name, SCALE.metrics_folder), *run_files(name)]
    return files


for exhibit in EXHIBITS.values():

    rule:
        name:
            exhibit.id
        input:
            lambda wildcards, exhibit=exhibit: inputs_of_target(exhibit),


rule tables:
    input:
        [inputs_of_target(exhibit) for exhibit in AVAILABLE if exhibit.kind == "table"],


rule figures:
    input:
        [inputs_of_target(exhibit) for exhibit in AVAILABLE if exhibit.kind == "figure"],


def where_results_are():
    """The output files of the targets, which are printed when the workflow has finished without an error."""
    lines = [f"\nScale {SCALE_NAME!r}: {SCALE.settings['description']}."]
    for exhibit in targets.wanted(of_this_command(), SCALE).values():
        files = exhibit.files(SCALE.results)
        if all(file.exists() for file in files):
            lines.append(f"  {exhibit.id:10} {'  '.join(map(str, files))}")
            lines.append(f"  notebook   {RESULTS}/notebooks/{exhibit.id}.ipynb")
            if exhibit.experiments:
                lines.append(
                    "  metrics    " + "  ".join(f"{SCALE.metrics_folder}/{name}.parquet" for name in exhibit.experiments)
                )
    if of_this_command() & set(targets.OF_ALL_EXHIBITS) and os.path.exists(f"{RESULTS}/claims.md"):
        lines.append(f"  claims     {RESULTS}/claims.md  {RESULTS}/claims.parquet  notebook {RESULTS}/notebooks/claims.ipynb")
    return "\n".join(lines)
