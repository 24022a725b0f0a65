"""The shipped sample pictures are what the script draws, in the layout that the rest relies on."""

import csv
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FLOWERS = ROOT / "data" / "flowers"
FILES = [f"{number:04d}.png" for number in range(1, 211)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "make_sample_data.py"
    spec = importlib.util.spec_from_file_location("make_sample_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (FLOWERS / "flower_labels.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_labels_name_every_file_once_and_ten_kinds(rows: list[dict[str, str]]) -> None:
    assert list(rows[0]) == ["file", "label"]
    assert [row["file"] for row in rows] == FILES
    kinds = Counter(row["label"] for row in rows)
    assert len(kinds) == 10
    assert set(kinds.values()) == {21}
    assert b"\r" not in (FLOWERS / "flower_labels.csv").read_bytes()


def test_there_are_210_small_rgb_pictures_and_no_others() -> None:
    assert sorted(path.name for path in FLOWERS.glob("*.png")) == FILES
    for file in FILES:
        with Image.open(FLOWERS / file) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (128, 128)), file


def test_the_folder_stays_under_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in FLOWERS.iterdir()) < 6_000_000


@pytest.mark.slow
def test_pictures_of_every_kind_are_byte_identical_when_redrawn(
    script: ModuleType, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    first_and_last = {row["label"]: row for row in rows} | {row["label"] + "!": row for row in rows[::-1]}
    for row in first_and_last.values():
        script.save_picture(tmp_path, row["file"], row["label"])
        assert (tmp_path / row["file"]).read_bytes() == (FLOWERS / row["file"]).read_bytes(), row["file"]


def test_the_labels_are_those_of_the_script(script: ModuleType, rows: list[dict[str, str]]) -> None:
    assert script.labels() == {row["file"]: row["label"] for row in rows}


def test_check_names_what_differs(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = {"0001.png": "rose", "0002.png": "tulip"}
    monkeypatch.setattr(script, "labels", lambda: few)
    assert script.main([str(tmp_path)]) == 0
    assert script.main([str(tmp_path), "--check"]) == 0
    (tmp_path / "0002.png").write_bytes(b"another picture")
    (tmp_path / "0003.png").write_bytes(b"one too many")
    assert script.main([str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().err.splitlines() == ["differs: 0002.png", "differs: 0003.png"]
