# What the offline scales make for themselves: data of the procedural worlds and, on request, the pretrained models.

from ether.worlds.facts import SUBJECTS

FACTS_SUBJECTS = [subject.name for subject in SUBJECTS]
GLUE_SPLITS = ("train", "tuning", "validation")


def glue_files():
    tasks = SCALE.settings["glue"]["known_tasks"] if "glue" in SCALE.settings else []
    named = {"mnli": "validation_matched"}
    return [
        f"{RESULTS}/world/datasets/world/glue/{task}/{named.get(task, split) if split == 'validation' else split}.parquet"
        for task in tasks
        for split in GLUE_SPLITS
    ]


def facts_files():
    folder = f"{RESULTS}/world/datasets/world"
    single = ("alpaca/default/train", "ai2_arc/ARC-Challenge/test", "ai2_arc/ARC-Challenge/validation")
    truthful = [f"truthful_qa/multiple_choice/{split}" for split in ("validation", "tuning")]
    mmlu = [f"mmlu/{subject}/{split}" for subject in FACTS_SUBJECTS for split in ("test", "validation", "dev")]
    return [f"{folder}/{name}.parquet" for name in (*single, *truthful, *mmlu)]


# A world: the module that makes it and the files by which it is known to be there. Each command takes ROOT --settings JSON.
WORLDS = {
    "language": ("ether.worlds", "ether/worlds/language.py", glue_files()),
    "facts": ("ether.worlds.facts", "ether/worlds/facts.py", facts_files()),
    "scenes": (
        "ether.worlds.scenes",
        "ether/worlds/scenes.py",
        [f"{RESULTS}/world/datasets/world/dreambooth/dataset/{name}" for name in ("metadata.json", "prompts_and_classes.txt")],
    ),
}
# Which world an experiment's data come from, where its scale says `world/…`.
WORLD_OF = {"glue": "language", "instruct": "facts", "subject": "scenes"}
# A model that the project makes, and the modules it depends on.
FOUNDATION = {
    "language-encoder": ["ether/worlds/language.py", "ether/foundation/language_encoder.py"],
    "language-model": ["ether/worlds/facts.py", "ether/foundation/language_model.py"],
    "text-to-image": ["ether/worlds/scenes.py", "ether/foundation/text_to_image.py"],
    "image-judges": ["ether/worlds/scenes.py", "ether/foundation/image_judges.py"],
}
# The notebooks that show them, and the experiment each belongs to.
SHOWN = {"foundation": "glue", "foundation_facts": "instruct", "foundation_images": "subject"}


def section(experiment):
    return SCALE.settings.get(experiment)


def world_files(experiment):
    """The generated files of an experiment, where the scale uses them."""
    settings = section(experiment)
    if settings is None or not settings["data"]["path"].startswith("world/"):
        return []
    return WORLDS[WORLD_OF[settings.get("like", experiment)]][2]


def foundation_files(experiment):
    """The rebuilt models of an experiment, where `--config foundation=rebuild` asks for it; shipped ones need no job."""
    settings = section(experiment)
    if settings is None or SCALE.settings["foundation"] != "rebuild":
        return []
    judges = [judge for judge in settings.get("judges", {}).values() if isinstance(judge, dict)]
    paths = [model["path"] for model in (settings["model"], *judges)]
    names = {path.split("/")[1] for path in paths if path.startswith("foundation/")}
    return [f"{RESULTS}/foundation/{name}/card.json" for name in sorted(names)]


for world, (command, module, files) in WORLDS.items():
    if world in SCALE.settings.get("world", {}):

        rule:
            name: f"world_{world}"
            input:
                module,
            output:
                files,
            params:
                settings=json.dumps(SCALE.settings["world"][world]),
                root=f"{RESULTS}/world",
                command=command,
            shell:
                "{sys.executable} -m {params.command} {params.root} --settings {params.settings:q}"


rule foundation_model:
    input:
        lambda wildcards: FOUNDATION[wildcards.name],
    output:
        RESULTS + "/foundation/{name}/card.json",
    wildcard_constraints:
        name="|".join(FOUNDATION),
    threads: SCALE.settings["threads"]
    shell:
        "ETHER_THREADS={threads} {sys.executable} -m ether.foundation {wildcards.name}"
        " --out {RESULTS}/foundation/{wildcards.name} --threads {threads}"


rule foundation_scores:
    input:
        lambda wildcards: world_files(SHOWN[wildcards.shown]) + foundation_files(SHOWN[wildcards.shown]),
        notebook="notebooks/{shown}.ipynb",
    output:
        RESULTS + "/foundation/{shown}.parquet",
    wildcard_constraints:
        shown="|".join(SHOWN),
    log:
        notebook=RESULTS + "/notebooks/{shown}.ipynb",
    params:
        parameters=json.dumps({"scale": SCALE_NAME, "overrides": OVERRIDES}),
    shell:
        "{sys.executable} -m ether.notebook {input.notebook} {log.notebook} --parameters {params.parameters:q}"


rule foundation:
    # Shows the offline scales' worlds and models; with `--config foundation=rebuild` pretrains them first.
    input:
        [f"{RESULTS}/foundation/{shown}.parquet" for shown, experiment in SHOWN.items() if world_files(experiment)],
