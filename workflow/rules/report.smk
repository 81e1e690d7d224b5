# What is made from all tables and figures together: the page of claims.


rule claims:
    # Collects the verdicts of the available tables and figures. (As for these, missing runs are executed first; with a replay none.)
    input:
        [exhibit.files(SCALE.results)[-1] for exhibit in EXHIBITS.values() if available(exhibit)],
        sources.closure("ether.exhibits.verdicts"),
        [module for entry in EXHIBITS.values() if (module := f"ether/paper/claims/{entry.module}.py") and os.path.exists(module)],
        notebook="notebooks/claims.ipynb",
    output:
        RESULTS + "/claims.parquet",
        RESULTS + "/claims.md",
    log:
        notebook=RESULTS + "/notebooks/claims.ipynb",
    params:
        parameters=json.dumps({"scale": SCALE_NAME, "overrides": OVERRIDES}),
    shell:
        "{sys.executable} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"


rule publish:
    # Copies what has been made to results/published/<scale>; makes nothing. Further options: python -m ether.publish --help
    shell:
        "{sys.executable} -m ether.publish {SCALE_NAME}"
