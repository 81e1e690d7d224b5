"""The page of deviations: it is up to date, and its helpers compute what their names say."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from ether.dense import dense_reflection
from ether.paper.deviations import adapter
from ether.paper.deviations.__main__ import main
from ether.paper.deviations.page import SECTIONS, page

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def text() -> str:
    return page()


def test_the_committed_page_is_the_generated_one(text: str) -> None:
    committed = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    assert text == committed, "run: python -m ether.paper.deviations --write docs/deviations.md"


def test_the_command_writes_the_page(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--write", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text
    assert capsys.readouterr().out == ""


def test_rotations_keep_angles_and_hyperspherical_energy_and_stretching_does_not() -> None:
    weight = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = weight @ dense_reflection(torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert adapter.angle_changes(turned, weight) == pytest.approx((0, 0), abs=1e-12)
    stretched = weight * torch.linspace(1, 3, 8, dtype=torch.float64)
    cosine, energy = adapter.angle_changes(stretched, weight)
    assert cosine > 0.01

    def plain(matrix: torch.Tensor) -> float:
        unit = matrix / matrix.norm(dim=1, keepdim=True)
        return sum(float(1 / (unit[i] - unit[j]).norm()) for i in range(5) for j in range(i))

    assert energy == pytest.approx(plain(stretched) / plain(weight) - 1) and abs(energy) > 1e-3


@pytest.mark.parametrize(("d", "n"), [(96, 1), (96, 4)])
def test_adams_first_step_turns_by_the_closed_form_whatever_the_blocks(d: int, n: int) -> None:
    assert adapter.first_step(d, n, 1e-3) == pytest.approx(1e-3 * math.sqrt(3 * d), rel=0.25)


def test_every_point_of_the_page_has_numbers(text: str) -> None:
    points = [make() for section in SECTIONS.values() for make in section]
    for point in points:
        cells = " ".join(cell for row in (point.table or [])[1:] for cell in row)
        assert re.search(r"\d", cells or point.text), point.title
        assert all(len(row) == len(point.table[0]) for row in point.table or []), point.title
    titles = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]
    assert titles == [point.title for point in points] and len(set(titles)) == len(titles)
