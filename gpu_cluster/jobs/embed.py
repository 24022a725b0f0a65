"""The job `embed`: turns image files, or pictures in memory, into embeddings in memory.

It is available from Python only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Backend
from gpu_cluster.backend.memory import memory_error_explained
from gpu_cluster.config import EmbedJobConfig
from gpu_cluster.embedding import embed as embedding
from gpu_cluster.embedding import features
from gpu_cluster.embedding.decoded import embed_decoded
from gpu_cluster.embedding.engines import Engine, check_installed, choose_engine
from gpu_cluster.embedding.shards import NOT_FINITE
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.files import printable
from gpu_cluster.images import decode, formats, square
from gpu_cluster.images.decode import Pixels
from gpu_cluster.jobs.prepare import choose_device, opened
from gpu_cluster.manifest import Manifest

if TYPE_CHECKING:
    from PIL.Image import Image

    # A picture in memory: (h, w, 3) uint8, RGB, or an image of Pillow in any mode.
    Picture: TypeAlias = Pixels | Image

# Bad files or pictures that an error names.
_MOST_NAMED = 3


def embed(files: Sequence[Path], config: EmbedJobConfig, observer: Observer | None = None) -> npt.NDArray[np.float32]:
    """Embed image files; return (n, d) float32, host, in the order of `files`.

    Raises
    ------
    DataError
        When a file cannot be decoded; the message names the first such file.
    GpuClusterError
        For everything else that stops a job (see `gpu_cluster.errors`).
    """
    if not files:
        return np.empty((0, count_features(config)), np.float32)
    # Unlike other manifests, this one is not sorted, and a file may occur twice: the result has the order of `files`.
    asked = Manifest(Path.cwd(), tuple(str(file.absolute()) for file in files))
    events = Recorder(observer or Observer())

    def prepared(weights: features.Weights, backend: Backend, _manifest: Manifest) -> Engine:
        return choose_engine(backend, features.extractor_of(config.embed, weights), config.embed)

    with opened(config, events, lambda: asked, prepared, workers=config.executor) as job, events.stage("embed"):
        found = embedding.embed(
            job.manifest,
            job.source,
            job.tools,
            store=job.store,
            store_config=config.store,
            observer=events,
            elsewhere=job.elsewhere(job.tools, config.embed, None),
        )
        bad = job.manifest.with_bad(found.bad).bad
        if bad:
            raise _unusable({repr(printable(str(files[row]))): why for row, why in bad.items()}, len(files), "files")
        return np.asarray(job.backend.to_host(found.x.whole()))


def count_features(config: EmbedJobConfig) -> int:
    """Return how many numbers describe one picture; no network is built.

    Raises
    ------
    GpuClusterError
        When the features are not known, or their weights cannot be used.
    """
    return features.extractor_of(config.embed, features.Weights(config.embed.weights)).n_features


def embed_pictures(
    pictures: Sequence[Picture], config: EmbedJobConfig, observer: Observer | None = None
) -> npt.NDArray[np.float32]:
    """Embed pictures in memory; return (n, d) float32, host, in their order. The store is not used.

    Images of Pillow are treated as `embed` treats files: turned upright by their Exif block, put on white where they
    are transparent, and their colours converted to sRGB.

    Raises
    ------
    DataError
        When a picture is no such array, or an image that cannot be decoded; the message names the first ones.
    GpuClusterError
        For everything else that stops a job (see `gpu_cluster.errors`).
    """
    wrong = {f"picture {row}": why for row, one in enumerate(pictures) if (why := _why_not(one)) is not None}
    if wrong:
        raise _unusable(wrong, len(pictures), "pictures")
    events = Recorder(observer or Observer())
    choice = choose_device(config)
    check_installed(config.embed.engine, choice.backend)
    extractor = features.extractor_of(config.embed, features.Weights(config.embed.weights))
    engine = choose_engine(choice.backend, extractor, config.embed)
    if not pictures:
        return np.empty((0, extractor.n_features), np.float32)
    decoded = _decoded(pictures, profiles=square.applies_profiles(config.embed))
    explained = memory_error_explained("embedding", len(pictures), extractor.n_features, choice.backend)
    with events.stage("embed"), explained:
        rows = embed_decoded(decoded, len(pictures), engine, events)
        x = np.asarray(choice.backend.to_host(rows.whole()))
    lost = {f"picture {row}": NOT_FINITE for row in np.flatnonzero(~np.isfinite(x).all(axis=1))}
    if lost:
        raise _unusable(lost, len(pictures), "pictures")
    return x


def _why_not(picture: Any) -> str | None:
    """Return why a picture in memory cannot be used, without decoding it; None if nothing is wrong with it."""
    from PIL.Image import Image

    if isinstance(picture, Image):
        return None
    expected = "expected an array (h, w, 3) uint8, RGB, or an image of Pillow; found"
    if not isinstance(picture, np.ndarray):
        return f"{expected} {type(picture).__name__}"
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        return f"{expected} an array {picture.shape} {picture.dtype}{_remedy(picture)}"
    return None


def _remedy(picture: npt.NDArray[Any]) -> str:
    """Return in words how an array becomes a picture that can be used, for the end of an error; '' if it is none."""
    if not picture.size or picture.ndim not in (2, 3):
        return ""
    if picture.dtype != np.uint8:
        return ": scale its numbers to 0 to 255, as (255 * picture).astype('uint8') does for numbers from 0 to 1"
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    if channels == 1:
        return ": numpy.dstack([picture] * 3) makes RGB of grey"
    if channels == 4:
        return ": PIL.Image.fromarray(picture) has its transparent parts put on white"
    if picture.shape[0] == 3:
        return ": numpy.moveaxis(picture, 0, -1) puts the colours last"
    return ""


def _decoded(pictures: Sequence[Picture], *, profiles: bool) -> Iterator[Pixels]:
    """Yield the pixels of pictures; an image of Pillow is decoded when it is its turn."""
    for row, picture in enumerate(pictures):
        if isinstance(picture, np.ndarray):
            yield picture
            continue
        try:
            pixels = decode.of_image(picture, profiles=profiles)
        except MemoryError:
            raise
        # On a broken file Pillow's decoders can raise any type of error.
        except Exception as error:
            why = formats.reason(b"", error)
            raise _unusable({f"picture {row}": why}, len(pictures), "pictures") from error
        yield pixels


def _unusable(bad: Mapping[str, str], n: int, what: str) -> DataError:
    """Return the error for bad ones among n files or pictures; `bad` has the reason by name, in their order."""
    names: dict[str, list[str]] = {}
    for name, why in list(bad.items())[:_MOST_NAMED]:
        names.setdefault(why, []).append(name)
    named = "; ".join(f"{', '.join(alike)}: {why}" for why, alike in names.items())
    more = f"; and {len(bad) - _MOST_NAMED:,} more" if len(bad) > _MOST_NAMED else ""
    return DataError(f"{len(bad)} of {n} {what} cannot be embedded: {named}{more}")
