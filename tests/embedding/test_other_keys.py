"""What is said of embeddings that the store holds and a job cannot use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu_cluster import embed
from tests.helpers import Noticing, age, write_pictures

pytest.importorskip("ncnn", reason="there is no wheel of ncnn here")


def told(files: list[Path], **options: Any) -> list[str]:
    observer = Noticing()
    embed(files, features="vgg16", image_size=32, observer=observer, **options)
    return [notice for notice in observer.notices if "do not mix" in notice]


def test_embeddings_of_the_other_engine_are_named_with_the_option_that_uses_them(tmp_path):
    files = age(write_pictures(tmp_path, 4))
    assert told(files[:3], engine="tensorflow") == []
    (said,) = told(files)
    assert said.startswith("The store holds the embeddings of 3 pictures of this job by the engine tensorflow 2.")
    assert "this job has the engine ncnn " in said
    assert said.endswith("use --engine tensorflow to use them, or they are computed again")
    # Now it has its own.
    assert told(files) == []
    assert told(files, force=True) == []


def test_embeddings_of_another_version_of_decoding_are_named_with_both_versions_and_the_option(tmp_path):
    files = age(write_pictures(tmp_path, 1))
    embed(files, features="vgg16", image_size=32, decoding=2)
    assert told(files) == [
        "The store holds the embedding of 1 picture of this job by version of decoding 2; this job has version of "
        "decoding 3, and the two do not mix: use --decoding 2 to use them, or they are computed again"
    ]


def test_embeddings_of_other_pixels_are_not_spoken_of(tmp_path):
    files = age(write_pictures(tmp_path, 1))
    embed(files, features="vgg16", image_size=48, decoding=2)
    embed(files, features="vgg16", image_size=32, engine="tensorflow", pooling="max")
    assert told(files) == []
