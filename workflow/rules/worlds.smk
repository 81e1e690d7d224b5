# The data that the offline scales generate: one rule for each world that the scale has settings for.
import importlib

from ether.worlds import WORLDS


def in_shell(value, keep=()):
    """JSON for a shell command, quoted, its braces kept from Snakemake's formatting; those in `keep` alone are formatted.

    As part of the command it does not count as a parameter: a job is made again for its own `digest`, not because the
    list of methods beside it has changed.
    """
    text = shlex.quote(json.dumps(value)).replace("{", "{{").replace("}", "}}")
    for name in keep:
        text = text.replace("{" + name + "}", name)
    return text


def world_outputs(world):
    """The files of a world of this scale; none if the scale does not generate it."""
    settings = SCALE.settings.get("world", {}).get(world)
    if settings is None:
        return []
    return [f"{RESULTS}/world/{file}" for file in importlib.import_module(WORLDS[world]).files(settings)]


def world_files(experiment):
    """The generated files that an experiment reads, if its scale uses generated data."""
    section = SCALE.settings.get(experiment)
    if section is None or not (section["data"]["path"] or "").startswith("world/"):
        return []
    return world_outputs(EXPERIMENTS[experiment].world)


for world in SCALE.settings.get("world", {}):

    rule:
        name:
            f"world_{world}"
        input:
            sources.closure("ether.worlds.__main__", WORLDS[world]),
        output:
            world_outputs(world),
        params:
            settings=json.dumps(SCALE.settings["world"][world]),
            root=f"{RESULTS}/world",
            world=world,
        shell:
            "{sys.executable:q} -m ether.worlds {params.world} {params.root} --settings {params.settings:q}"
