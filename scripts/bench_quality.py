"""Measures how well the groups match the labels at the true number of classes, over labelled sets and seeds.

Prints Markdown: homogeneity and adjusted Rand index (ARI) of the presets, as mean and standard deviation over seeds.
With --recipes it prints the ARI of every recipe that was tried with VGG16 alone, and with --algorithms that of every
algorithm in VGG16's space, both on whole sets and (as their mean) on the subsets of `labelled_sets`. Labels are only
compared with the groups. `bench_features` prints what was tried with two networks.

    .venv/bin/python -m scripts.bench_quality [FOLDER...]            # and the sample set, and scikit-learn's digits
    .venv/bin/python -m scripts.bench_quality --recipes [FOLDER...]  # folders whose subfolders are classes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from sklearn.metrics import adjusted_rand_score, homogeneity_score

from gpu_cluster.backend import CpuBackend, Rows
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.cluster import cluster
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.config import Algorithm, EmbedConfig, RunConfig
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.events import Observer
from gpu_cluster.options import build_config
from gpu_cluster.results import Projection
from scripts.labelled_sets import Labelled, embedded, image_sets, of_vgg16, subsets


@dataclass(frozen=True)
class Quality:
    """Scores against the labels, one for each seed."""

    homogeneity: tuple[float, ...]
    adjusted_rand: tuple[float, ...]


def quality(
    part: Labelled,
    config: RunConfig,
    seeds: Sequence[int],
    project: Callable[[Rows, RunConfig], Projection] | None = None,
) -> Quality:
    """Cluster one set into as many clusters as there are classes, once for each seed."""
    projection = (project or as_configured)(part.embeddings.x, config)
    found = []
    for seed in seeds:
        given: dict[str, Any] = {"seed": seed, "backend": CpuBackend(), "observer": Observer()}
        sample = config.sweep.sweep_sample
        labels = cluster(projection.x, part.n_classes, config.cluster, sample=sample, **given).labels
        found.append((homogeneity_score(part.labels, labels), adjusted_rand_score(part.labels, labels)))
    homogeneity, adjusted_rand = zip(*found, strict=True)
    return Quality(homogeneity, adjusted_rand)


def as_configured(x: Rows, config: RunConfig) -> Projection:
    return reduce(x, config.reduce, backend=CpuBackend())


# The recipes that were tried


def components(count: Callable[[int], int]) -> Callable[[Rows, RunConfig], Projection]:
    """Return a projection to a number of components that depends on the number of pictures."""

    def project(x: Rows, config: RunConfig) -> Projection:
        reduction = config.reduce.model_copy(update={"pca": count(x.shape[0])})
        return as_configured(x, config.model_copy(update={"reduce": reduction}))

    return project


def shrunk(share: float) -> Callable[[Rows, RunConfig], Projection]:
    """Return a projection whitened by variances that are all raised by a share of their mean."""

    def project(x: Rows, config: RunConfig) -> Projection:
        reduction = config.reduce.model_copy(update={"whitening": 0.0, "normalize": False})
        plain = as_configured(x, config.model_copy(update={"reduce": reduction}))
        variance = plain.x.var(axis=0, ddof=1)
        spread = plain.x / np.sqrt(variance + share * variance.mean())
        return replace(plain, x=(spread / np.linalg.norm(spread, axis=1, keepdims=True)).astype(np.float32))

    return project


def with_flips(config: EmbedConfig) -> Extractor:
    """Return the mean of the embeddings of a picture and of its mirror image."""
    plain = of_vgg16(config)

    def build(precision: Any) -> Any:
        network = plain.build(precision)
        return lambda pictures: (network(pictures) + network(pictures[:, :, ::-1])) / 2

    return replace(plain, key={**plain.key, "flips": True}, build=build)


@dataclass(frozen=True)
class Recipe:
    """A way to group pictures: options of the job, or an extractor or a projection that no option selects."""

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    extractor: Callable[[EmbedConfig], Extractor] | None = None
    project: Callable[[Rows, RunConfig], Projection] | None = None


AVERAGE = {"pooling": "average", "scaling": "sqrt-l2"}
RECIPES = (
    Recipe("**VGG16**"),
    Recipe("notebook", {"preset": "notebook"}),
    Recipe("notebook, without its PCA", {"preset": "notebook", "pca": "none"}),
    Recipe("average, square root", AVERAGE),
    Recipe("average, square root, fully whitened", AVERAGE | {"whitening": 0.5}),
    Recipe(
        "average, square root, n/20 components (8 to 24), fully whitened",
        AVERAGE | {"whitening": 0.5},
        project=components(lambda n: int(np.clip(n / 20, 8, 24))),
    ),
    Recipe("average, square root, without PCA", AVERAGE | {"pca": "none"}),
    Recipe("average", {"pooling": "average"}),
    Recipe("maximum", {"pooling": "max"}),
    Recipe("GeM of block 5", {"pooling": "gem"}),
    Recipe("square root", {"scaling": "sqrt-l2"}),
    Recipe("not whitened", {"whitening": 0.0}),
    Recipe("whitened by 0.25", {"whitening": 0.25}),
    Recipe("fully whitened", {"whitening": 0.5}),
    Recipe("shrunk whitening, by a quarter", project=shrunk(0.25)),
    Recipe("shrunk whitening, by a half", project=shrunk(0.5)),
    Recipe("shrunk whitening, by the mean", project=shrunk(1.0)),
    Recipe("16 components", {"pca": 16}),
    Recipe("64 components", {"pca": 64}),
    Recipe(
        "half as many components again, to 64",
        project=components(lambda n: int(np.clip(1.5 * np.sqrt(n), 8, 64))),
    ),
    Recipe("without PCA", {"pca": "none"}),
    Recipe("not of unit length after PCA", {"normalize": False}),
    Recipe("stretched, not cropped", {"fit": "stretch"}),
    Recipe("flips averaged", extractor=with_flips),
)


def print_recipes(sets: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> None:
    titles = [title for name in sets for title in (name, "its subsets")]
    print(f"| recipe | {' | '.join(titles)} | mean |\n|{'---|' * (len(titles) + 2)}", flush=True)
    for recipe in RECIPES:
        cells, means = [], []
        for name, images in sets.items():
            config = build_config(RunConfig, **{**images, "features": "vgg16", **recipe.options})
            whole = embedded(name, config, recipe.extractor)
            found = [quality(part, config, seeds, recipe.project).adjusted_rand for part in (whole, *subsets(whole))]
            of_subsets = [float(np.mean(one)) for one in found[1:]]
            cells += [f"{np.mean(found[0]):.2f} ± {np.std(found[0]):.2f}", f"{np.mean(of_subsets):.2f}"]
            means += [float(np.mean(found[0])), float(np.mean(of_subsets))]
        print(f"| {recipe.title} | {' | '.join(cells)} | {np.mean(means):.3f} |", flush=True)


def print_algorithms(sets: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> None:
    titles = [title for name in sets for title in (name, "its subsets")]
    print(f"| algorithm | {' | '.join(titles)} | mean |\n|{'---|' * (len(titles) + 2)}", flush=True)
    backend = CpuBackend()
    wholes = [embedded(name, build_config(RunConfig, **images, features="vgg16")) for name, images in sets.items()]
    config = build_config(RunConfig)
    spaces = [
        [(part, as_configured(part.embeddings.x, config).x) for part in (whole, *subsets(whole))] for whole in wholes
    ]
    for algorithm in ("kmeans", "ward", "spectral"):
        cells, means = [], []
        for parts in spaces:
            found = []
            for part, x in parts:
                some = []
                for seed in seeds:
                    if algorithm == "kmeans":
                        given: dict[str, Any] = {"sample": config.sweep.sweep_sample, "seed": seed, "backend": backend}
                        labels = kmeans.fit(x, part.n_classes, config.cluster, **given).labels
                    else:
                        labels = backend.group(x, cast(Algorithm, algorithm), k=part.n_classes, seed=seed)
                    some.append(adjusted_rand_score(part.labels, labels))
                found.append(float(np.mean(some)))
            cells += [f"{found[0]:.2f}", f"{np.mean(found[1:]):.2f}"]
            means += [found[0], float(np.mean(found[1:]))]
        print(f"| {algorithm} | {' | '.join(cells)} | {np.mean(means):.3f} |", flush=True)


def print_presets(
    sets: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], presets: Sequence[str] = ("default", "notebook")
) -> None:
    print("| images | classes | preset | homogeneity | ARI |\n|---|---|---|---|---|", flush=True)
    for name, images in sets.items():
        for preset in presets:
            config = build_config(RunConfig, **{**images, "preset": preset})
            whole = embedded(name, config)
            found = quality(whole, config, seeds)
            shown = " | ".join(
                f"{np.mean(values):.2f} ± {np.std(values):.2f}" for values in (found.homogeneity, found.adjusted_rand)
            )
            print(f"| {name}, {len(whole.labels)} | {whole.n_classes} | {preset} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders whose subfolders are classes")
    parser.add_argument("--recipes", action="store_true", help="every recipe that was tried, not only the presets")
    parser.add_argument("--algorithms", action="store_true", help="k-means, Ward and spectral, in the default space")
    parser.add_argument("--presets", nargs="+", default=["default", "notebook"], help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1 (default: 5)")
    arguments = parser.parse_args()
    with image_sets(arguments.folders) as sets:
        if arguments.recipes or arguments.algorithms:
            (print_recipes if arguments.recipes else print_algorithms)(sets, range(arguments.seeds))
        else:
            print_presets(sets, range(arguments.seeds), arguments.presets)


if __name__ == "__main__":
    main()
