"""Where the paper, its released code and this suite differ, and the effect of each choice: the page `docs/deviations.md`.

    python -m ether.paper.deviations --write docs/deviations.md

A module of this package is a section of the page. Every number on it is computed here, from the functions of `ether`, closed
forms over the paper's architectures, `published.yaml` and the methods' files, and rounded to be the same on every machine.
"""
