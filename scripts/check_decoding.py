"""Compares what the network makes of pictures as they were decoded before version 3 of the decoding, and now.

Before, every pixel of a JPEG was decoded, and the picture was resized in float32. Prints a Markdown table: the least
and the median cosine between both embeddings of a picture; the adjusted Rand index (ARI) between both groupings, at the
true number of classes; and the ARI of each with the classes, on the whole set and as the mean over the subsets of
`labelled_sets`. Each ARI is the mean over seeds, with its standard deviation.

    python -m scripts.check_decoding FOLDER... [--drawn] [--free] [--megapixels 12] [--quality 92] [--every 3]

The subfolders of each FOLDER are its classes; with --drawn, the sample set and scikit-learn's digits are compared too.
With --megapixels, the photos are enlarged first (`scripts.enlarged`): they are made, not taken.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from gpu_cluster.backend import CpuBackend, HeldRows
from gpu_cluster.clustering.cluster import cluster
from gpu_cluster.config import RunConfig
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.events import Observer
from gpu_cluster.images import square
from gpu_cluster.images.decode import decode
from gpu_cluster.images.places import open_source
from gpu_cluster.images.source import Picture
from gpu_cluster.jobs.prepare import find_labelled
from gpu_cluster.manifest import FileFacts
from gpu_cluster.options import build_config
from gpu_cluster.results import Embeddings
from scripts.bench_decode import resized_before
from scripts.bench_quality import as_configured, quality
from scripts.enlarged import Enlarger, as_jpeg, size_of
from scripts.labelled_sets import Labelled, image_sets, of_vgg16, subsets

_BATCH = 16


@dataclass(frozen=True)
class Photos:
    """The pictures of a set: how each is enlarged, and which of them are taken."""

    megapixels: float | None
    quality: int
    every: int

    @property
    def title(self) -> str:
        return f"{self.megapixels:g} MP, quality {self.quality}" if self.megapixels else "as it is"

    def contents(self, pictures: Sequence[Picture]) -> Iterator[tuple[io.BytesIO, str]]:
        """Yield the bytes and the suffix of the file of each picture."""
        enlarger = Enlarger()
        for number, picture in enumerate(pictures):
            with picture.open() as stream:
                content, suffix = stream.read(), picture.suffix
            if self.megapixels:
                with Image.open(io.BytesIO(content)) as photo:
                    large = enlarger.enlarge(photo, size_of(photo, self.megapixels), number)
                content, suffix = as_jpeg(large, self.quality), ".jpg"
            yield io.BytesIO(content), suffix


def embed_both(config: RunConfig, contents: Iterable[tuple[IO[bytes], str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings (n, d) of files as they were decoded before, and as they are now."""
    backend = CpuBackend()
    engine = choose_engine(backend, of_vgg16(config.embed), config.embed)
    engine.build()
    found = []
    squares: list[np.ndarray] = []

    def through_the_network() -> None:
        found.append(np.array(backend.to_host(engine.features(np.stack(squares)))))
        squares.clear()

    for stream, suffix in contents:
        squares.append(np.asarray(resized_before(decode(stream, suffix), config.embed)))
        stream.seek(0)
        reduced = decode(stream, suffix, at_least=square.at_least(config.embed))
        squares.append(square.to_square(reduced, config.embed))
        if len(squares) == 2 * _BATCH:
            through_the_network()
    if squares:
        through_the_network()
    x = np.concatenate(found)
    return x[::2], x[1::2]


def cosines(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    x, y = before.astype(np.float64), now.astype(np.float64)
    return np.asarray((x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1))


def labels_of(part: Labelled, config: RunConfig, seed: int) -> np.ndarray:
    x = as_configured(part.embeddings.x, config).x
    given: dict[str, Any] = {"seed": seed, "backend": CpuBackend(), "observer": Observer()}
    return np.asarray(cluster(x, part.n_classes, config.cluster, **given).labels)


def compare(title: str, config: RunConfig, photos: Photos, seeds: Sequence[int]) -> None:
    manifest = find_labelled(config.input, Observer())
    assert manifest.labels is not None, "the images have no labels"
    source = open_source(manifest.root)
    rows = np.arange(len(manifest))[:: photos.every]
    pictures = [Picture(source, manifest.paths[row], FileFacts()) for row in rows]
    both = embed_both(config, photos.contents(pictures))
    labels = np.array([manifest.labels[row] for row in rows])
    given: dict[str, Any] = {"rows": rows, "bad": {}, "n_computed": len(rows), "images_per_s": None}
    before, now = (
        Labelled("", Embeddings(x=HeldRows(x, CpuBackend()), precision="float32", batch_size=None, **given), labels)
        for x in both
    )
    same = [adjusted_rand_score(*(labels_of(part, config, seed) for part in (before, now))) for seed in seeds]
    cells = [f"{cosines(*both).min():.5f}", f"{np.median(cosines(*both)):.5f}", spread(same)]
    for part in (before, now):
        whole = quality(part, config, seeds).adjusted_rand
        parts = [quality(one, config, seeds).adjusted_rand for one in subsets(part)]
        cells += [spread(whole), spread(np.mean(parts, axis=0)) if parts else "-"]
    print(f"| {title}, {photos.title} | {len(rows)} | {' | '.join(cells)} |", flush=True)


def compare_free_photo() -> None:
    """Print the cosine of the only real photo in an installed package that is large enough to be reduced."""
    import skimage

    content = (Path(skimage.__file__).parent / "data" / "retina.jpg").read_bytes()
    (cosine,) = cosines(*embed_both(build_config(RunConfig), [(io.BytesIO(content), ".jpg")]))
    print(f"scikit-image's retina, a JPEG of 1411 x 1411 pixels: cosine {cosine:.5f}")


def spread(values: Any) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders whose subfolders are classes")
    parser.add_argument("--drawn", action="store_true", help="the sample set and the digits too")
    parser.add_argument("--free", action="store_true", help="scikit-image's one large photo too; it has no class")
    parser.add_argument("--megapixels", type=float, nargs="*", default=[None], help="enlarge to this size first")
    parser.add_argument("--quality", type=int, nargs="*", default=[92], help="quality of the JPEGs that are made")
    parser.add_argument("--every", type=int, default=1, help="take every so many pictures (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1 (default: 5)")
    arguments = parser.parse_args()
    if arguments.free:
        compare_free_photo()
    titles = ["set", "pictures", "least cosine", "median cosine", "same groups (ARI)"]
    titles += [f"{name}, {when}" for when in ("before", "now") for name in ("ARI", "ARI of subsets")]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    kinds = [
        Photos(megapixels, quality, arguments.every)
        for megapixels in arguments.megapixels
        for quality in (arguments.quality if megapixels else [0])
    ]
    with image_sets(arguments.folders) as sets:
        drawn = {"sample set", "digits"}
        for title, images in sets.items():
            if arguments.drawn or title not in drawn:
                for photos in kinds:
                    compare(title, build_config(RunConfig, **images), photos, range(arguments.seeds))


if __name__ == "__main__":
    main()
