# What the offline scales make for themselves: data of the procedural worlds and, on request, the pretrained models.

TASKS = SCALE.experiment("glue")["known_tasks"]
WORLD_SPLITS = {task: "validation_matched" if task == "mnli" else "validation" for task in TASKS}


def world_files():
    """The generated GLUE-like files, where the scale uses them."""
    if not SCALE.experiment("glue")["data"]["path"].startswith("world/"):
        return []
    folder = f"{RESULTS}/world/datasets/world/glue"
    return [f"{folder}/{task}/{split}.parquet" for task in TASKS for split in ("train", "tuning", WORLD_SPLITS[task])]


def foundation_files():
    """The rebuilt encoder, where `--config foundation=rebuild` asks for it; the shipped one needs no job."""
    path = SCALE.experiment("glue")["model"]["path"]
    if SCALE.settings["foundation"] != "rebuild" or not path.startswith("foundation/"):
        return []
    return [f"{RESULTS}/{path}/card.json"]


if world_files():

    rule world_language:
        input:
            "ether/worlds/language.py",
        output:
            world_files(),
        params:
            settings=json.dumps(SCALE.settings["world"]["language"]),
            root=f"{RESULTS}/world",
        shell:
            "{sys.executable} -m ether.worlds {params.root} --settings {params.settings:q}"


rule foundation_model:
    input:
        "ether/worlds/language.py",
        "ether/foundation/language_encoder.py",
    output:
        RESULTS + "/foundation/{name}/card.json",
    threads: SCALE.settings["threads"]
    shell:
        "ETHER_THREADS={threads} {sys.executable} -m ether.foundation {wildcards.name}"
        " --out {RESULTS}/foundation/{wildcards.name} --threads {threads}"


rule foundation_scores:
    input:
        world_files(),
        foundation_files(),
        notebook="notebooks/foundation.ipynb",
    output:
        RESULTS + "/foundation/scores.parquet",
    log:
        notebook=RESULTS + "/notebooks/foundation.ipynb",
    params:
        parameters=json.dumps({"scale": SCALE_NAME, "overrides": OVERRIDES}),
    shell:
        "{sys.executable} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"


rule foundation:
    # Shows the offline scales' language and encoder; with `--config foundation=rebuild` pretrains it first.
    input:
        [RESULTS + "/foundation/scores.parquet"] if world_files() else [],
