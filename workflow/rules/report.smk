# What is made from all tables and figures together: the page of claims, the site of executed notebooks, Snakemake's report, and
# the copy for reading. (As for `tables` and `figures`, missing runs are executed first; with a replay none.)


rule claims:
    # Collects the verdicts of the available tables and figures, and judges nothing again.
    input:
        [exhibit.files(SCALE.results)[-1] for exhibit in AVAILABLE],
        sources.closure("ether.exhibits.verdicts"),
        [module for entry in EXHIBITS.values() if (module := f"ether/paper/claims/{entry.module}.py") and os.path.exists(module)],
        notebook="notebooks/claims.ipynb",
    output:
        report(RESULTS + "/claims.parquet", caption="../report/claims.rst", category="Claims", labels={"claims": "data"}),
        RESULTS + "/claims.md",
    log:
        notebook=RESULTS + "/notebooks/claims.ipynb",
    params:
        parameters=json.dumps({"scale": SCALE_NAME, "overrides": OVERRIDES}),
    shell:
        "{sys.executable} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"


def notebook_page(name, category):
    """The page of an executed notebook, marked for Snakemake's report; its label is looked up when the report is made."""

    def labels(wildcards):
        return {"notebook": exhibit_title(EXHIBITS[name]) if name in EXHIBITS else "The paper's claims"}

    return report(f"{RESULTS}/site/{name}.html", caption="../report/notebook.rst", category=category, labels=labels)


rule site:
    # The pages of the executed notebooks. The notebooks are logs of the rules that make the inputs, so they are not inputs.
    input:
        rules.claims.output,
        [exhibit.files(SCALE.results) for exhibit in AVAILABLE],
        sources.closure("ether.site"),
    output:
        RESULTS + "/site/index.html",
        RESULTS + "/report.rst",
        notebook_page("claims", "Claims"),
        report(RESULTS + "/site/tables.html", caption="../report/tables.rst", category="Tables", labels={"title": "All, sortable"}),
        [notebook_page(exhibit.id, "Notebooks") for exhibit in AVAILABLE],
    params:
        overrides=json.dumps(OVERRIDES),
    shell:
        "{sys.executable} -m ether.site {SCALE_NAME} --overrides {params.overrides:q}"


# The first page of the report: the claims, as soon as the site has been made.
report: os.path.abspath(f"{RESULTS}/report.rst") if os.path.exists(f"{RESULTS}/report.rst") else "../report/workflow.rst"


rule report:
    # One HTML file with every table, figure and notebook, the rules with their run times, and the claims as its first page.
    localrule: True
    input:
        rules.tables.input,
        rules.figures.input,
        rules.claims.output,
        rules.site.output,
        style="workflow/report/report.css",
    output:
        RESULTS + "/report.html",
    params:
        settings=[f"{key}={value}" for key, value in {"scale": SCALE_NAME, **OVERRIDES}.items()],
        targets=["tables", "figures", "claims", "site"],
    shell:
        "ETHER_PROGRESS=off {sys.executable} -m snakemake {params.targets} --cores 1 --quiet all --report {output}"
        " --report-stylesheet {input.style} --config {params.settings:q}"


rule publish:
    # Copies what has been made to results/published/<scale>; makes nothing. Further options: python -m ether.publish --help
    localrule: True
    params:
        replay=["--replay", str(SCALE.replay)] if SCALE.replay else [],
    shell:
        "{sys.executable:q} -m ether.publish {SCALE_NAME} {params.replay:q}"
