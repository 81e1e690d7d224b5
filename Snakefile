# The paper, as a workflow: `snakemake --cores 1 table4`, `--config scale=smoke|small|laptop|paper mirror=FOLDER …`.
# The settings live in workflow/scales and workflow/methods; what needs what lives in workflow/rules.
import json
import os
import shlex
import sys

sys.path.insert(0, workflow.basedir)  # the checkout's own package, whether or not it is installed

from snakemake.exceptions import WorkflowError

from ether import config as ether_config
from ether.errors import EtherError

SCALE_NAME = str(config.get("scale", "small"))
OVERRIDES = {key: value for key, value in config.items() if key != "scale"}
try:
    SCALE = ether_config.load(SCALE_NAME, OVERRIDES)
except EtherError as error:
    raise WorkflowError(str(error))
RESULTS = str(SCALE.results)

# A table or figure, and the experiments it reads. A new one is a line here and a notebook of its name; it is a figure if
# its name says so. Those without experiments are exact: they need no training and are the same at every scale.
EXHIBITS = {
    "table1": [],
    "table2": ["subject"],
    "table4": ["glue"],
    "table5": ["instruct"],
    "table6": ["subject"],
    "table7": [],
    "table8": [],
    "table10": ["instruct"],
    "table11": ["subject"],
    "parameters": [],
    "figure1": [],
    "figure2": [],
    "figure3": ["perturbation"],
    "figure4": ["subject_rates"],
    "figure7": ["subject"],
    "figure8": ["subject_factors"],
    "figure9": ["subject"],
    "figure_instruct_rates": ["instruct_rates"],  # not in the paper
}


wildcard_constraints:
    exhibit="|".join(EXHIBITS),
    experiment="|".join(ether_config.EXPERIMENTS),


include: "workflow/rules/foundation.smk"
include: "workflow/rules/experiments.smk"
include: "workflow/rules/collect.smk"


rule all:
    default_target: True
    input:
        rules.tables.input,
        rules.figures.input,


onsuccess:
    print(whereabouts())


onerror:
    print("\nWhat is finished is kept: the same command goes on from there. The executed notebooks, the failed one")
    print(f"included, are under {RESULTS}/notebooks/.")
