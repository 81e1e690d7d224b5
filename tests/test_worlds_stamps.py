"""Scenes of cut-outs: maps agree with the cut-outs, splits are disjoint, captions name what the model knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from ether.diffusion import control_data
from ether.errors import MissingResourceError
from ether.worlds import control, pictures, stamps


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the package's: green discs as animals, red diamonds as food, and what is left out."""
    folder = tmp_path_factory.mktemp("stamps")
    for number in range(30):
        for place, colour in (("animals/birds", (0, 200, 0)), ("food/fruit", (200, 0, 0))):
            image = Image.new("RGBA", (80, 80))
            pen = ImageDraw.Draw(image)
            if "birds" in place:
                pen.ellipse((10, 10, 69, 69), fill=(*colour, 255))
            else:
                pen.polygon([(40, 10), (69, 40), (40, 69), (10, 40)], fill=(*colour, 255))
            (folder / place).mkdir(parents=True, exist_ok=True)
            image.save(folder / place / f"thing{number}.png")
            described = "A crow, in English.\nac.utf8=Crow" if "birds" in place else "Some APPLES."
            (folder / place / f"thing{number}.txt").write_text(described)
    (folder / "vehicles" / "cartoon").mkdir(parents=True)
    Image.new("RGBA", (80, 80), (0, 0, 0, 255)).save(folder / "vehicles" / "cartoon" / "bus.png")
    Image.new("RGBA", (80, 80), (0, 0, 0, 255)).save(folder / "vehicles" / "opaque.png")
    Image.new("RGBA", (80, 80), (0, 0, 0, 60)).save(folder / "vehicles" / "sheer.png")
    Image.new("RGBA", (20, 20), (0, 0, 0, 255)).save(folder / "vehicles" / "small.png")
    return folder


def test_what_is_used_and_how_it_is_named(package: Path) -> None:
    found = stamps.cut_outs(package)
    assert len(found) == 60 and {cut.group for cut in found} == {"animal", "food"}
    assert {cut.name for cut in found} == {"animal", "apple"}  # "crow" is no name of the model, "apples" is one
    assert {cut.split for cut in found} == {"train", "tuning", "validation"}
    assert all(cut.tile.shape == (96, 96, 4) for cut in found)


def test_maps_are_where_the_things_are(package: Path) -> None:
    made = stamps.scenes(stamps.cut_outs(package), "train", 0, 40)
    for image, labels, hint, scene in zip(made.images, made.targets, made.hints, made.scenes, strict=True):
        assert set(np.unique(labels)) == {0, control.CLASSES.index("animal" if scene.things[0].name == "animal" else "food")}
        thing = image[labels > 0].astype(int)
        main = 1 if scene.things[0].name == "animal" else 0
        assert (thing[:, main] > thing.sum(1) - thing[:, main]).mean() > 0.95  # the cut-out's colour
        empty = pictures.render(pictures.Scene((), scene.background, scene.shift))
        outside = labels == 0
        assert (image[outside] == empty[outside]).all(-1).mean() > 0.9  # but for the rim of the thing
        assert np.array_equal(hint, control.coloured(labels))


def test_the_data_set_is_one_of_control_data(package: Path, tmp_path: Path) -> None:
    for name in "ab":
        stamps.write(tmp_path / name, package)
    folders = [tmp_path / name / "datasets" / stamps.DATA_SET / "semantic" for name in "ab"]
    assert all((folders[0] / f"{s}.parquet").read_bytes() == (folders[1] / f"{s}.parquet").read_bytes() for s in stamps.SIZES)
    pairs = control_data.pairs(folders[0], "validation", None)
    read = control_data.ControlPairs(pairs, "semantic", 64, control_data.classes(folders[0]))
    made = stamps.scenes(stamps.cut_outs(package), "validation", 0, stamps.SIZES["validation"])
    assert len(read) == 128 and np.array_equal(read[5]["target"].numpy(), made.targets[5])
    assert list(pd.read_parquet(folders[0] / "train.parquet").columns) == ["image", "annotation", "caption"]


def test_another_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="tuxpaint-stamps-default"):
        stamps.write(tmp_path / "out", tmp_path)
