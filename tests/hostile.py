"""Hostile input for the tests: text that tries to become code, and a file that shows whether code ran."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CANARY = "canary-of-the-tests"  # the name of the file that the hostile text tries to create in the current folder

TEXTS = (
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"'; touch {CANARY}; '",
    f'"; touch {CANARY}; "',
    f"'''\nopen('{CANARY}', 'w')\n'''",
    f"__import__('os').system('touch {CANARY}')",
    f"!!python/object/apply:os.system ['touch {CANARY}']",
    f"\n!touch {CANARY}\n",
    f"a\\'+open('{CANARY}','w')+\\'",
    "<script>document.title = 'x'</script>",
    "<img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "{input}",
    "{sys.executable}",
    "../../outside",
    "/etc/passwd",
    "~nobody-here/x",
    "a\0b",
    "a" * 5000,
    "²",
    "-1",
    "1e999",
    "$dropout",
    "$x^{$",
    "a|b\nc",
    "",
)

# Few examples, always the same ones, and no limit to the time of one: the tests take seconds, on a busy machine as well.
# ETHER_FUZZ=40 in the environment searches for longer: forty times as many examples, each time others.
LONGER = int(os.environ.get("ETHER_FUZZ", "0"))
few = settings(
    max_examples=25 * max(LONGER, 1),
    deadline=None,
    derandomize=not LONGER,
    database=None,
    suppress_health_check=list(HealthCheck),
)
more = settings(few, max_examples=4 * few.max_examples)

text = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20))
scalar = st.one_of(
    text, st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([0, 1, -1, 7, 2**63, 10**30, float("inf")])
)
value = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6)


@st.composite
def changed(draw: st.DrawFn, content: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested dictionaries and lists in which one place is replaced, removed, or gets a further key."""
    import copy

    made = copy.deepcopy(content)
    inner: Any = made
    while True:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        if not keys:
            break
        key = draw(st.sampled_from(list(keys)))
        if isinstance(inner[key], dict | list) and inner[key] and draw(st.booleans()):
            inner = inner[key]
            continue
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "remove":
            del inner[key]
        elif how == "add" and isinstance(inner, dict):
            inner[draw(text)] = draw(value)
        else:
            inner[key] = draw(value)
        break
    return made


class Payload:
    """An object whose pickle creates the canary when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder / CANARY}"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def pickled(folder: Path) -> bytes:
    """A pickle that creates the canary in a folder."""
    return pickle.dumps({"weight": Payload(folder)})


@contextmanager
def no_code_runs(folder: Path) -> Iterator[None]:
    """Works in a folder, and fails if the canary appears there or in the folder above it."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
    assert not list(folder.parent.rglob(CANARY))
