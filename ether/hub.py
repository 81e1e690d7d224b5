"""Location of models and data sets: foundation models and worlds of this project, a folder, a hub mirror, or the hub.

All scales use these functions. A missing resource is reported in one paragraph that names the resource, the location that was
searched, and the remedy. Nothing is downloaded if a mirror is set.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ether.errors import EtherError, MissingResourceError
from ether.results import file_digest

FOUNDATION = "foundation/"  # models this project pretrains: shipped in the package or rebuilt by the workflow
WORLD = "world/"  # data sets this project generates, under results/<scale>/world
_REMAKE = "If it is a generated file (under results/), delete it and start again; otherwise replace it."


@dataclass(frozen=True)
class Source:
    """Location of a model or data set: a folder, or a hub id with a revision."""

    name: str
    folder: Path | None = None
    revision: str | None = None

    @property
    def location(self) -> str:
        """The argument of ``from_pretrained``."""
        return str(self.folder) if self.folder else self.name

    @property
    def pin(self) -> dict[str, str]:
        """``revision=…`` for a hub id, nothing for a folder."""
        return {"revision": self.revision} if self.folder is None and self.revision else {}

    def safetensors(self, model: Mapping[str, Any]) -> bool:
        """Whether to load safetensors: if ``weights`` of a scale's ``model`` section says so, or the folder has such files."""
        inner = self.folder / (model.get("subfolder") or "") if self.folder else None
        return model.get("weights", "safetensors") == "safetensors" or bool(inner and any(inner.glob("*.safetensors")))


@contextlib.contextmanager
def explained(source: Source, kind: str, setting: str) -> Iterator[None]:
    """Converts errors of the hub client into a `MissingResourceError` with a message of one paragraph.

    Args:
        source: the model or data set that is loaded.
        kind: "model" or "data set", for the message.
        setting: the key of the scale that names it, for the message.

    Raises:
        MissingResourceError: the repository is gated or unknown, the hub is unreachable, or a folder lacks required files or
            has unusable ones.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    described = f"{kind} {source.name!r}" + (f" at revision {source.revision}" if source.revision else "")
    remedy = (
        f"Change `{setting}` in workflow/scales/, or give --config mirror=FOLDER with a copy under "
        f"FOLDER/{'models' if kind == 'model' else 'datasets'}/{source.name}/."
    )
    try:
        yield
    except (EtherError, MemoryError):
        raise
    except Exception as error:
        chain: list[BaseException] = []
        link: BaseException | None = error
        while link is not None and link not in chain:
            chain.append(link)
            link = link.__cause__ or link.__context__
        text = " ".join(f"{type(e).__name__}: {e}" for e in chain).lower()
        if any(isinstance(e, GatedRepoError) for e in chain) or "gated repo" in text:
            raise MissingResourceError(
                f"The {described} is gated. Request access on its hub page, wait until it is granted, then log in once with "
                f"`hf auth login` (or set HF_TOKEN) and start again. {remedy}"
            ) from error
        if any(isinstance(e, RevisionNotFoundError) for e in chain):
            raise MissingResourceError(f"The {described} has no such revision on the hub. {remedy}") from error
        if any(isinstance(e, RepositoryNotFoundError | HFValidationError) for e in chain):
            raise MissingResourceError(
                f"There is no {described} on the hub, or it is private and you are not logged in (`hf auth login`). {remedy}"
            ) from error
        unreachable = ("couldn't connect", "connectionerror", "connecterror", "offline", "couldn't reach", "resolve",
                       "max retries", "connection error", "network", "no cached", "cannot find the requested files",
                       "proxyerror", "403 forbidden")  # fmt: skip
        if any(isinstance(e, LocalEntryNotFoundError) for e in chain) or any(word in text for word in unreachable):
            raise MissingResourceError(
                f"The {described} is not on this machine and the hub cannot be reached. Connect to the internet once to "
                f"download it, or use the scale `small`, which needs no hub. {remedy}"
            ) from error
        if source.folder is None or type(error).__name__ == "OutOfMemoryError":  # torch's, which is a RuntimeError
            raise
        # Whatever a library raises: files that are damaged, not of this kind, refused (pickles), or do not fit together.
        root = chain[-1] if str(chain[-1]) else error
        reason = f"{type(root).__name__}: {root}"[:1000]
        raise MissingResourceError(f"The {described} cannot be loaded from {source.folder}: {reason}. {remedy}") from error


# --- models ----------------------------------------------------------------------------------------------------


def model_source(model: Mapping[str, Any], resources: Mapping[str, Any], results: Path) -> Source:
    """Location of the model in a scale's ``model`` section.

    Args:
        model: ``path`` (foundation/<name>, a folder, or a hub id) and ``revision``.
        resources: ``mirror`` and ``foundation`` (shipped | rebuild).
        results: ``results/<scale>``, the parent folder of rebuilt foundation models.

    Raises:
        MissingResourceError: the mirror or the folder of rebuilt models does not contain it, or a shipped file is damaged.
    """
    path, revision = model["path"], model.get("revision")
    if path.startswith(FOUNDATION):
        from ether import foundation

        name = path.removeprefix(FOUNDATION)
        if resources["foundation"] == "rebuild":
            folder = results / "foundation" / name
            if not (folder / foundation.CARD).is_file():
                raise MissingResourceError(
                    f"The rebuilt foundation model {name!r} is not at {folder}: run the workflow target with "
                    "--config foundation=rebuild, which pretrains it first, or omit this setting to use the shipped model."
                )
            return Source(path, folder)
        return Source(path, foundation.path(name))
    return _folder_or_mirror("models", path, revision, resources)


def _folder_or_mirror(kind: str, path: str, revision: str | None, resources: Mapping[str, Any]) -> Source:
    if resources.get("mirror"):
        folder = Path(resources["mirror"]).expanduser() / kind / path
        if not folder.is_dir():
            raise MissingResourceError(
                f"The mirror has no {kind}/{path}: the folder {folder} does not exist. Add it, or omit --config mirror=… to "
                "use the hub."
            )
        return Source(path, folder, revision)
    if Path(path).expanduser().is_dir():
        return Source(path, Path(path).expanduser())
    if path.startswith((".", "/", "~")):
        raise MissingResourceError(f"The folder {path} does not exist.")
    return Source(path, None, revision)


def local_state(settings: Any, resources: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file in the folders that settings name by a ``path``: of a mirror, or elsewhere.

    What the hub provides is identified by its revision, foundation models and generated data by their cards and settings.

    Args:
        settings: of an experiment; sections at any depth.
        resources: ``mirror``.
    """
    if isinstance(settings, list | tuple):
        return [entry for value in settings for entry in local_state(value, resources)]
    if not isinstance(settings, Mapping):
        return []
    found = [entry for value in settings.values() for entry in local_state(value, resources)]
    path = settings.get("path")
    if not isinstance(path, str) or path.startswith((FOUNDATION, WORLD)):
        return found
    if mirror := resources.get("mirror"):
        folders = [Path(mirror).expanduser() / kind / path for kind in ("models", "datasets")]
    else:
        folders = [Path(path).expanduser()]
    for folder in folders:
        for file in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if file.is_file():
                state = file.stat()
                found.append((str(file), state.st_size, state.st_mtime_ns))
    return found


def complete(loaded: Any, source: Source, setting: str) -> Any:
    """The model of what ``from_pretrained(..., output_loading_info=True)`` returns, if the files have its weights.

    Tensors that are missing are drawn at random. A new head is expected to be missing, and some checkpoints lack a few tensors
    that are not used.

    Raises:
        MissingResourceError: most of the model's tensors are missing, because the files are those of another model.
    """
    model, info = loaded
    missing = sorted(info["missing_keys"])
    total = len(model.state_dict())
    if 2 * len(missing) > total:
        raise MissingResourceError(
            f"The files of the model {source.name!r} have no values for {len(missing)} of its {total} tensors, such as "
            f"{missing[0]!r}: they belong to another model, or their names were changed. Change `{setting}` in workflow/scales/."
        )
    return model


@functools.lru_cache(maxsize=32)
def folder_fingerprint(folder: Path, suffixes: tuple[str, ...] = (".safetensors", ".bin", ".json")) -> str:
    """SHA-256 over the names and contents of a folder's files (weights, configuration, tokenizer)."""
    summary = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in suffixes and file.name != "card.json":
            summary.update(f"{file.relative_to(folder)}={file_digest(file)};".encode())
    return summary.hexdigest()


def fingerprint(source: Source) -> str:
    """Identifies the contents of a source: the hash of a folder's files, or the hub revision."""
    return folder_fingerprint(source.folder) if source.folder else f"{source.name}@{source.revision or 'main'}"


# --- data ------------------------------------------------------------------------------------------------------


def data_source(data: Mapping[str, Any], resources: Mapping[str, Any], results: Path) -> Source:
    """Location of the data set in a scale's ``data`` section.

    Raises:
        MissingResourceError: the mirror does not contain it, or the world has not been generated.
    """
    path, revision = data["path"], data.get("revision")
    if path.startswith(WORLD):
        folder = results / "world" / "datasets" / path
        if not folder.is_dir():
            raise MissingResourceError(f"The generated data set {path!r} is not at {folder}: run the workflow target.")
        return Source(path, folder)
    return _folder_or_mirror("datasets", path, revision, resources)


def split_file(source: Source, config: str, split: str) -> Path:
    """The file of one split, or of a part of it (``train[:-500]``), in a folder laid out as ``<config>/<split>.parquet``
    (or ``.jsonl``).

    Raises:
        MissingResourceError: no such file; the message lists the available splits.
    """
    assert source.folder is not None
    split = split.partition("[")[0]
    for suffix in (".parquet", ".jsonl"):
        file = source.folder / config / f"{split}{suffix}"
        if file.is_file():
            return file
    available = sorted(f.stem for f in (source.folder / config).glob("*") if f.suffix in (".parquet", ".jsonl"))
    found = f"It has: {', '.join(available)}" if available else "It has no file of this configuration"
    raise MissingResourceError(
        f"The data set {source.name!r} has no split {split!r} of {config!r}: looked for "
        f"{source.folder / config / split}.parquet. {found}."
    )


@functools.lru_cache(maxsize=256)
def check_columns(source: Source, config: str, split: str, columns: tuple[str, ...], setting: str) -> None:
    """Checks the columns of a split's file without reading its rows.

    Raises:
        MissingResourceError: no such file, or a column is missing.
    """
    import pyarrow.parquet

    file = split_file(source, config, split)
    if file.suffix == ".parquet":
        try:
            available = pyarrow.parquet.read_schema(file).names
        except (OSError, ValueError) as error:
            raise MissingResourceError(f"{file} is damaged or not a parquet file ({error}). {_REMAKE}") from error
        missing = [column for column in columns if column not in available]
        if missing:
            raise MissingResourceError(
                f"{file} has no column {missing[0]!r}; it has {', '.join(available)}. Rename the column in the file, or "
                f"change `{setting}` in workflow/scales/."
            )


def load_split(source: Source, config: str, split: str, columns: Sequence[str], setting: str) -> Any:
    """One split, or a part of it such as ``train[:-500]``, as a ``datasets.Dataset`` with at least the named columns.

    Raises:
        MissingResourceError: the data set, configuration, split or a column is missing, or the split has no rows.
    """
    import datasets

    with explained(source, "data set", setting):
        if source.folder is not None:
            file = split_file(source, config, split)
            builder = "parquet" if file.suffix == ".parquet" else "json"
            loaded = datasets.load_dataset(builder, data_files=str(file), split="".join(("train", *split.partition("[")[1:])))
        else:
            loaded = datasets.load_dataset(source.name, config, split=split, **source.pin)
    missing = [column for column in columns if column not in loaded.column_names]
    if missing:
        raise MissingResourceError(
            f"The data set {source.name!r} ({config}, {split}) has no column {missing[0]!r}; it has "
            f"{', '.join(loaded.column_names)}. Rename the column in the file, or change `{setting}` in workflow/scales/."
        )
    if not len(loaded):
        raise MissingResourceError(f"The data set {source.name!r} ({config}, {split}) has no rows. {_REMAKE}")
    return loaded
