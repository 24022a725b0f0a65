"""Labelled pictures for comparing recipes: whole sets and seeded subsets, for the scripts that measure quality."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpu_cluster.backend import CpuBackend, FloatArray, HeldRows
from gpu_cluster.config import EmbedConfig, RunConfig
from gpu_cluster.embedding import extractors, features, vgg16
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.events import Observer
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.jobs.prepare import find_labelled
from gpu_cluster.options import build_config
from gpu_cluster.results import Embeddings
from gpu_cluster.store.store import open_store

# Number of classes of each subset, and whether only half of its pictures are used.
SUBSETS = ((3, False), (4, False), (4, True), (5, False), (6, False), (6, True), (8, False), (8, True), (10, True))


@dataclass(frozen=True)
class Labelled:
    """Embeddings of a set or of a subset, and the class of each row."""

    title: str
    embeddings: Embeddings
    labels: np.ndarray

    @property
    def n_classes(self) -> int:
        return len(np.unique(self.labels))


@contextmanager
def image_sets(folders: Sequence[Path]) -> Iterator[Mapping[str, dict[str, Any]]]:
    """Yield for each set the options that name its pictures: the sample set, the folders, and scikit-learn's digits."""
    with tempfile.TemporaryDirectory() as place:
        named = [*folders, _draw_digits(Path(place))]
        yield {"sample set": {}} | {folder.name: {"images": (folder,), "labels_from_folders": True} for folder in named}


def _draw_digits(folder: Path) -> Path:
    """Write scikit-learn's 8 x 8 digits as pictures, one folder for each digit."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / "digits" / str(digit) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * (255 / 16)).astype(np.uint8)).save(file)
    return folder / "digits"


def embedded(title: str, config: RunConfig, extractor: Callable[[EmbedConfig], Extractor] | None = None) -> Labelled:
    """Embed the pictures of a config through the store, with an extractor in place of the features of the config."""
    observer = Observer()
    store = open_store(config.store, observer)
    manifest = find_labelled(config.input, observer)
    source = open_source(manifest.root)
    manifest = scan(manifest, source, config.input, observer, store=store)
    given: dict[str, Any] = {"store": store, "store_config": config.store, "observer": observer}
    chosen = features.extractor_of(config.embed, features.Weights()) if extractor is None else extractor(config.embed)
    engine = choose_engine(CpuBackend(), chosen, config.embed)
    found = embed(manifest, source, engine, **given)
    assert manifest.labels is not None, "the images have no labels"
    return Labelled(title, found, np.array([manifest.labels[row] for row in found.rows]))


def of_vgg16(config: EmbedConfig) -> Extractor:
    return extractors.of_vgg16(vgg16.find_weights(config.weights), config)


def of_efficientnet_lite2(config: EmbedConfig) -> Extractor:
    from gpu_cluster.embedding import efficientnet_lite

    return extractors.of_efficientnet_lite2(efficientnet_lite.find_weights(), config.side)


# The parts of which features are joined: the side of the square that the network reads, and what computes the part.
PARTS: Mapping[str, tuple[int, Callable[[EmbedConfig], Extractor]]] = {
    "vgg16": (224, of_vgg16),
    "efficientnet-lite2": (260, of_efficientnet_lite2),
}
# What the parts are multiplied by where they are joined (see `bench_features`).
WEIGHTS = (2.0, 1.0)
FEATURES = (*PARTS, "+".join(PARTS))


def embedded_parts(title: str, options: Mapping[str, Any], named: str) -> list[Labelled]:
    """Embed the pictures that the options name once for each part of the features, which are joined by `+`."""
    found = []
    for name in named.split("+"):
        side, extractor = PARTS[name]
        found.append(embedded(title, build_config(RunConfig, **{**options, "image_size": side}), extractor))
    assert all(np.array_equal(part.embeddings.rows, found[0].embeddings.rows) for part in found)
    return found


def side_by_side(parts: Sequence[Labelled]) -> Labelled:
    """Join the embeddings of the same pictures: each part of unit length, and times its weight if there are several."""
    if len(parts) == 1:
        return parts[0]
    columns = [weight * unit_length(part.embeddings.x.whole()) for part, weight in zip(parts, WEIGHTS, strict=True)]
    x = HeldRows(np.concatenate(columns, axis=1), CpuBackend())
    return replace(parts[0], embeddings=replace(parts[0].embeddings, x=x))


def unit_length(x: FloatArray) -> FloatArray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norms > 0, norms, 1), dtype=np.float32)


def subsets(whole: Labelled) -> Iterator[Labelled]:
    """Yield seeded subsets that hold some of the classes."""
    classes = np.unique(whole.labels)
    for number, (n_classes, thinned) in enumerate(SUBSETS):
        if n_classes >= len(classes):
            continue
        random = np.random.RandomState(number)
        rows = np.flatnonzero(np.isin(whole.labels, random.choice(classes, n_classes, replace=False)))
        if thinned:
            rows = np.sort(random.choice(rows, len(rows) // 2, replace=False))
        some = replace(
            whole.embeddings, x=HeldRows(whole.embeddings.x.take(rows), CpuBackend()), rows=np.arange(len(rows))
        )
        yield Labelled(f"{whole.title}, {n_classes} classes", some, whole.labels[rows])
