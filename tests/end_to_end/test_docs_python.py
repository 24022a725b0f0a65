"""The Python of docs/python.md runs as it is written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpu_cluster.run_folder import PAGE
from tests.helpers import assignments, write_pictures

PAGE_OF_DOCS = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.slow
def test_every_block_runs_and_the_five_lines_find_the_groups_of_run(tmp_path, monkeypatch):
    files = write_pictures(tmp_path / "photos", 12, ".jpg")
    labels = pd.DataFrame({"file": [file.name for file in files], "label": [file.stem[-1] > "4" for file in files]})
    labels.to_csv(tmp_path / "photos" / "names.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE_OF_DOCS.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE_OF_DOCS), "exec"), names)
    assert len(blocks) == 6
    assert (names["result"].folder / PAGE).is_file()
    assert names["distances"].shape == (12, 3)
    assert names["x"].shape == (12, 2304)
    names["result"] = names["gpu_cluster"].run("photos", out="runs/defaults")
    np.testing.assert_array_equal(names["clusters"], assignments(names["result"])["cluster"])
