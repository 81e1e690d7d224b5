"""Finds PEFT's own tests, which are in its source distribution and not in the wheel, and loads them as a package."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import peft

PACKAGE = "peft_source_tests"
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "peft-source"


class Unavailable(Exception):
    """PEFT's tests cannot be had here; the message says why and what to do."""


def find() -> Path:
    """The unpacked source distribution of the installed PEFT: PEFT_SOURCE, else the cache, else downloaded into it.

    Raises Unavailable where there is neither a folder nor a network, or where the folder is of another version.
    """
    given = os.environ.get("PEFT_SOURCE")
    folder = Path(given) if given else CACHE / f"peft-{peft.__version__}"
    if not given and not folder.is_dir():
        download(folder)
    if not (folder / "tests" / "test_custom_models.py").is_file():
        raise Unavailable(
            f"{folder} has no tests/test_custom_models.py. Set PEFT_SOURCE to the unpacked source distribution of "
            f"peft {peft.__version__}."
        )
    about = folder / "PKG-INFO"
    if about.is_file() and f"\nVersion: {peft.__version__}\n" not in about.read_text():
        raise Unavailable(f"{folder} is not the source of the installed peft {peft.__version__}; see its PKG-INFO.")
    return folder


def download(folder: Path) -> None:
    """Get the source distribution of the installed PEFT with pip and unpack it to `folder`, all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        name = f"peft=={peft.__version__}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        got = subprocess.run(
            [*pip, "--timeout", "15", "--no-deps", "--no-binary", ":all:", "--dest", temporary, name],
            capture_output=True,
            text=True,
            timeout=300,
        )
        archives = list(Path(temporary).glob("peft-*.tar.gz"))
        if got.returncode or not archives:
            raise Unavailable(
                f"pip could not download the source distribution of {name}: "
                f"{(got.stderr.strip().splitlines() or ['no output'])[-1]} Set PEFT_SOURCE to its unpacked folder."
            )
        with tarfile.open(archives[0]) as archive:
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and newer
            archive.extractall(temporary, **safely)
        try:
            (Path(temporary) / folder.name).rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, and its copy is as good
                raise


def load(module: str) -> types.ModuleType:
    """Import tests/<module>.py of PEFT's source; its relative imports find its neighbours. Raises Unavailable."""
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(find() / "tests")]
        sys.modules[PACKAGE] = package
    try:
        return importlib.import_module(f"{PACKAGE}.{module}")
    except ImportError as error:
        raise Unavailable(f"PEFT's tests need a package that is not installed: {error}.") from error
