# The small models that the project pretrains (shipped, or rebuilt with `--config foundation=rebuild`), and their notebooks.

from ether.foundation import MODELS


def paths_in(value):
    """Every `path` in an experiment's settings, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from [inner] if key == "path" else paths_in(inner)


def foundation_files(experiment):
    """The files of the foundation models that an experiment uses: shipped, or rebuilt with `--config foundation=rebuild`."""
    section = SCALE.settings.get(experiment)
    if section is None:
        return []
    names = sorted({path.split("/")[1] for path in paths_in(section) if str(path).startswith("foundation/")})
    if SCALE.settings["foundation"] == "rebuild":
        return [f"{RESULTS}/foundation/{name}/card.json" for name in names]
    shipped = [file for name in names for file in Path("ether/foundation/weights", name).rglob("*") if file.is_file()]
    return sorted(map(str, shipped))


rule foundation_model:
    input:
        lambda wildcards: sources.closure("ether.foundation.__main__", MODELS[wildcards.name]),
    output:
        RESULTS + "/foundation/{name}/card.json",
    wildcard_constraints:
        name="|".join(MODELS),
    threads: SCALE.settings["threads"]
    shell:
        "ETHER_THREADS={threads} {sys.executable:q} -m ether.foundation {wildcards.name}"
        " --out {RESULTS}/foundation/{wildcards.name} --threads {threads}"


def experiments_of(world):
    """The experiments of this scale that read a world."""
    return [name for name, entry in EXPERIMENTS.items() if entry.world == world and world_files(name)]


rule foundation_notebook:
    # Shows a world and the models pretrained on it.
    input:
        lambda wildcards: sorted({f for e in experiments_of(wildcards.world) for f in (*world_files(e), *foundation_files(e))}),
        lambda wildcards: sources.closure(WORLDS[wildcards.world], "ether.config", "ether.hub", *MODELS.values()),
        notebook="notebooks/foundation_{world}.ipynb",
    output:
        RESULTS + "/foundation/{world}.parquet",
    wildcard_constraints:
        world="|".join(WORLDS),
    log:
        notebook=RESULTS + "/notebooks/foundation_{world}.ipynb",
    params:
        parameters=json.dumps({"scale": SCALE_NAME, "overrides": OVERRIDES}),
    shell:
        "{sys.executable:q} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"


rule foundation:
    # Shows the offline scales' worlds and models; with `--config foundation=rebuild` pretrains them first.
    input:
        [f"{RESULTS}/foundation/{world}.parquet" for world in WORLDS if experiments_of(world)],
