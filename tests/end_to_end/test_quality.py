"""How good the groups are on real photos: 12 Oxford species, 720 photos, five seeds, no label in any decision."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_cluster.options import build_config
from scripts.bench_quality import Quality, quality
from scripts.labelled_sets import embedded
from tests.helpers import photos


def on_flowers(preset: str) -> Quality:
    config = build_config(preset=preset, images=(photos("flowers12"),), labels_from_folders=True)
    return quality(embedded("flowers12", config), config, range(5))


@pytest.mark.slow
def test_default_preset_finds_the_species():
    found = on_flowers("default")
    assert np.mean(found.homogeneity) >= 0.90
    assert np.mean(found.adjusted_rand) >= 0.87


@pytest.mark.slow
def test_notebook_preset_is_as_good_as_the_notebook_was():
    found = on_flowers("notebook")
    assert 0.30 <= np.mean(found.homogeneity) <= 0.40
    assert 0.12 <= np.mean(found.adjusted_rand) <= 0.19
