"""The notebook runner is strict where papermill is lenient, passes on the lines of runs, and keeps what fails."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ether import notebook
from ether.errors import ConfigurationError, MissingResourceError

ROOT = Path(__file__).resolve().parent.parent


def _write(path: Path, *sources: str, parameters: str = "a = 1\nb: str = 'x'") -> Path:
    book = nbformat.v4.new_notebook()
    first = nbformat.v4.new_code_cell(parameters)
    first.metadata["tags"] = ["parameters"]
    book.cells = [first, *[nbformat.v4.new_code_cell(source) for source in sources]]
    nbformat.write(book, path)
    return path


def test_parameters_arrive_and_folders_are_made(tmp_path):
    source = _write(tmp_path / "n.ipynb", "print(a + 1)")
    notebook.execute(source, tmp_path / "deep" / "er" / "out.ipynb", {"a": 41})
    cells = nbformat.read(tmp_path / "deep/er/out.ipynb", as_version=4).cells
    assert cells[-1].outputs[0]["text"].strip() == "42"
    assert [p.name for p in (tmp_path / "deep/er").iterdir()] == ["out.ipynb"]


def test_unknown_parameter_is_an_error_before_the_kernel_starts(tmp_path):
    source = _write(tmp_path / "n.ipynb")
    with pytest.raises(ConfigurationError, match="Unknown parameter 'aa'.*Did you mean 'a'"):
        notebook.execute(source, tmp_path / "out.ipynb", {"aa": 1})
    assert not (tmp_path / "out.ipynb").exists()
    assert notebook.parameters_of(source) == {"a", "b"}


def test_a_failed_notebook_is_kept_and_named(tmp_path, capsys):
    source = _write(tmp_path / "n.ipynb", "print('before')", "1 / 0")
    status = notebook.main([str(source), str(tmp_path / "out.ipynb")])
    said = capsys.readouterr().err
    assert status == 1 and "ZeroDivisionError" in said and "out.ipynb" in said
    kept = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert any("before" in str(cell.get("outputs")) for cell in kept.cells)


def test_our_own_errors_come_without_a_traceback(tmp_path, capsys):
    source = _write(tmp_path / "n.ipynb", "from ether.errors import HardwareError", "raise HardwareError('Buy a GPU.')")
    assert notebook.main([str(source), str(tmp_path / "out.ipynb")]) == 1
    said = capsys.readouterr().err
    assert "Buy a GPU." in said and "Traceback" not in said


def test_a_kernel_that_is_killed_is_an_error_of_one_paragraph(tmp_path, capsys):
    source = _write(tmp_path / "n.ipynb", "print('before')", "import os\nos.kill(os.getpid(), 9)")
    assert notebook.main([str(source), str(tmp_path / "out.ipynb")]) == 1
    message = capsys.readouterr().err
    assert "lack of memory" in message and "out.ipynb" in message and "Traceback" not in message
    assert "before" in str(nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-2].outputs)


def test_a_kernel_that_dies_while_it_starts_is_an_error_of_one_paragraph(tmp_path, capsys, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'ipykernel_launcher' in sys.orig_argv: os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = _write(tmp_path / "n.ipynb", "print('never')")
    assert notebook.main([str(source), str(tmp_path / "out.ipynb")]) == 1
    message = capsys.readouterr().err
    assert "stopped while it was starting" in message and "lack of memory" in message and "Traceback" not in message


def test_a_kernel_that_dies_while_it_starts_is_started_again(tmp_path, capsys, monkeypatch):
    """As when two kernels that start at the same time choose the same port; nothing was executed yet."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, pathlib\n"
        f"first = pathlib.Path({str(tmp_path / 'first')!r})\n"
        "if 'ipykernel_launcher' in sys.orig_argv and not first.exists():\n"
        "    first.touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = _write(tmp_path / "n.ipynb", "print('once')")
    notebook.execute(source, tmp_path / "out.ipynb", {})
    assert (tmp_path / "first").exists() and capsys.readouterr().err.count("it is started again") == 1
    assert "once" in str(nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs)


def test_a_full_disk_is_an_error_of_one_paragraph(tmp_path, capsys):
    """The limit to the size of files stops papermill where it saves the executed notebook, and no other file is written."""
    source = _write(tmp_path / "n.ipynb", "print('x' * 100_000)")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert notebook.main([str(source), str(tmp_path / "out.ipynb")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = capsys.readouterr().err
    assert "No space left on the disk" in message and "out.ipynb" in message and "Traceback" not in message


def test_only_the_lines_of_runs_are_passed_on(tmp_path, capsys):
    lines = "print('[glue 1/2] ETHER, rte, seed 0: 71.20 (3.1 s)')\nprint([0.5, 1])\nprint('rte: [1/2] done')\nprint('[2/2] end')"
    source = _write(tmp_path / "n.ipynb", lines, "display('[3/3] not printed')")
    assert notebook.main([str(source), str(tmp_path / "out.ipynb")]) == 0
    assert capsys.readouterr().out.splitlines() == ["[glue 1/2] ETHER, rte, seed 0: 71.20 (3.1 s)", "[2/2] end"]
    # as they appear: in pieces, and each at once
    stream = io.StringIO()
    passing = notebook.RunLines(stream)
    for piece, printed in (("[figure-8 1/", ""), ("2] a", ""), ("\n[2", "[figure-8 1/2] a\n"), ("/2]b\n", "[figure-8 1/2] a\n")):
        passing.write(piece)
        assert stream.getvalue() == printed


def test_the_command_starts_without_what_it_does_not_use():
    code = "import sys\nfrom ether import notebook\nfrom pathlib import Path\n"
    code += "notebook.parameters_of(Path('notebooks/table7.ipynb'))\n"
    code += "with notebook.hidden(*notebook.UNUSED):\n    import papermill\n"
    code += "print(sorted({'torch', 'peft', 'pandas', 'pyarrow', 'rfc3987_syntax', 'lark'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_notebook_and_missing_parameters_cell(tmp_path):
    with pytest.raises(MissingResourceError, match="There is no notebook"):
        notebook.parameters_of(tmp_path / "none.ipynb")
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "bare.ipynb")
    with pytest.raises(ConfigurationError, match="no cell tagged `parameters`"):
        notebook.parameters_of(tmp_path / "bare.ipynb")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_sources_have_no_outputs_and_take_a_scale(path):
    book = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells if cell.cell_type == "code")
    assert {"scale", "overrides"} <= notebook.parameters_of(path)
    [defaults] = [cell.source for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert 'scale = "small"' in defaults  # as of the workflow


def test_an_interruption_is_one_line_and_no_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(notebook, "execute", interrupted)
    assert notebook.main([str(tmp_path / "n.ipynb"), str(tmp_path / "out.ipynb")]) == notebook.INTERRUPTED
    said = capsys.readouterr().err
    assert "n.ipynb was interrupted." in said and said.count("\n") == 1
