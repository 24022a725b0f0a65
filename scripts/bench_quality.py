"""How well the groups match the labels: the presets side by side, at the true number of classes.

Prints a Markdown table of homogeneity and adjusted Rand index (ARI), mean and standard deviation over seeds. Every
folder is embedded once a preset; labels are only compared with what came out.

    .venv/bin/python scripts/bench_quality.py                      # the sample set
    .venv/bin/python scripts/bench_quality.py --from-folders DIR   # photos in folders named after their label
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpu_cluster import vgg16
from gpu_cluster.backend import CpuBackend
from gpu_cluster.cluster import cluster
from gpu_cluster.config import JobConfig, build_config
from gpu_cluster.embed import embed
from gpu_cluster.events import Observer
from gpu_cluster.images import discover, scan
from gpu_cluster.reduce import reduce
from gpu_cluster.score import score
from gpu_cluster.store import open_store


@dataclass(frozen=True)
class Quality:
    """Scores against the labels, one a seed."""

    n_images: int
    n_classes: int
    homogeneity: tuple[float, ...]
    adjusted_rand: tuple[float, ...]


def quality(config: JobConfig, seeds: Sequence[int]) -> Quality:
    """Embed the images of `config` once, then cluster them into as many clusters as there are classes, seed by seed."""
    backend, observer = CpuBackend(), Observer()
    store = open_store(config.store, observer)
    manifest = scan(discover(config.input, observer), config.input, observer, store=store)
    weights = vgg16.find_weights(config.embed.weights)
    given = {"store": store, "store_config": config.store, "backend": backend, "observer": observer}
    embeddings = embed(manifest, weights, config.embed, **given)  # type: ignore[arg-type]
    projection = reduce(embeddings, config.reduce, sweep_space=config.sweep.sweep_space, backend=backend)
    k = len({label for label in manifest.labels or () if label is not None})

    def scores() -> Iterator[tuple[float, float]]:
        for seed in seeds:
            given = {"seed": seed, "backend": backend, "observer": observer}
            clustering = cluster(projection, k, config.cluster, **given)  # type: ignore[arg-type]
            found = score(manifest, embeddings, projection, clustering, config.score, **given).external  # type: ignore[arg-type]
            assert found is not None, "the images have no labels"
            yield float(found["homogeneity"] or 0), float(found["adjusted_rand"] or 0)

    homogeneity, adjusted_rand = zip(*scores(), strict=True)
    return Quality(len(embeddings.rows), k, homogeneity, adjusted_rand)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of images; without any, the sample set")
    parser.add_argument("--from-folders", action="store_true", help="labels are the names of the files' folders")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1 (default: 5)")
    parser.add_argument("--fit", choices=("crop", "stretch"), help="override how the presets make pictures square")
    arguments = parser.parse_args()
    print("| images | classes | preset | homogeneity | ARI |\n|---|---|---|---|---|")
    for folder in arguments.folders or [None]:
        for preset in ("default", "notebook"):
            config = build_config(
                preset=preset,
                images=None if folder is None else (folder,),
                labels_from_folders=arguments.from_folders or None,
                fit=arguments.fit,
            )
            found = quality(config, range(arguments.seeds))
            name = "sample set" if folder is None else folder.name
            scores = " | ".join(
                f"{np.mean(values):.2f} ± {np.std(values):.2f}" for values in (found.homogeneity, found.adjusted_rand)
            )
            print(f"| {name}, {found.n_images} | {found.n_classes} | {preset} | {scores} |", flush=True)


if __name__ == "__main__":
    main()
