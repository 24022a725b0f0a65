"""Checks that both engines find the same groups: embeds sets from the same decoded pixels and clusters them.

Every picture is decoded and resized once, and the same squares go through ncnn and through TensorFlow. The default
recipe then clusters the embeddings of each. Prints, for each set, the largest relative difference of an embedding and
the adjusted Rand index of the two results, which must be 1. The exit code is 1 if it is not.

    .venv/bin/python scripts/check_engines.py [--image-size N] [FOLDER ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gpu_cluster.backend import CpuBackend, HeldRows
from gpu_cluster.clustering.sequence import find_clusters
from gpu_cluster.config import RunConfig, shipped_data
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.engines import ENGINES, Engine
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.images.discover import discover
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Picture
from gpu_cluster.options import build_config


def pictures_of(folder: Path) -> list[Picture]:
    config = build_config(RunConfig, images=(folder,))
    manifest, source = discover(config.input, Observer()), open_source(folder)
    manifest = scan(manifest, source, config.input, Observer())
    usable = [row for row in range(len(manifest)) if row not in manifest.bad and row not in manifest.duplicates]
    return [Picture(source, manifest.paths[row], manifest.files[row]) for row in usable]


def embedded(pictures: Sequence[Picture], engines: Sequence[Engine]) -> Iterator[list[np.ndarray]]:
    """Yield batches (B, d) by each engine; the first one decodes for all."""
    for _positions, pixels in engines[0].batches(pictures):
        yield [np.array(engine.features(pixels)) for engine in engines]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of pictures (default: the sample set)")
    parser.add_argument("--image-size", type=int, default=224, help="side of the squares (default: 224)")
    arguments = parser.parse_args()
    backend, agree = CpuBackend(), True
    for folder in arguments.folders or [shipped_data() / "flowers"]:
        config = build_config(RunConfig, image_size=arguments.image_size)
        extractor = extractors.of_vgg16(vgg16.find_weights(), config.embed)
        engines = [ENGINES[name](backend, extractor, config.embed) for name in ("ncnn", "tensorflow")]
        for engine in engines:
            engine.build()
        batches = list(embedded(pictures_of(folder.absolute()), engines))
        ours, theirs = (np.concatenate([batch[number] for batch in batches]) for number in range(2))
        error = np.max(np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1))
        clusterings = [
            find_clusters(HeldRows(x, backend), config, backend=backend, events=Recorder()).clustering
            for x in (ours, theirs)
        ]
        ari = backend.label_scores(clusterings[1].labels, clusterings[0].labels)["adjusted_rand"]
        agree = agree and ari == 1
        print(
            f"{folder.name}: {len(ours)} pictures, relative difference at most {error:.1e}, k {clusterings[0].k} and "
            f"{clusterings[1].k}, ARI {ari:.4f}",
            flush=True,
        )
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
