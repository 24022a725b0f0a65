"""What is done with a case of each target, and what must come of it: what it is for, or an error of gpu-cluster's own.

Each function returns in words what is wrong, or None for a case that ended as it should. It runs in a process of its
own, in which gpu_cluster is loaded (see `worker`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import CpuBackend
from gpu_cluster.clustering.model import checksum
from gpu_cluster.config import EmbedConfig, InputConfig, PredictConfig, RunConfig
from gpu_cluster.embedding import vgg16
from gpu_cluster.embedding.engines import Engine, NcnnEngine, choose_engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.embedding.shards import embed_shard
from gpu_cluster.errors import GpuClusterError
from gpu_cluster.events import Observer
from gpu_cluster.images import decode
from gpu_cluster.images.discover import discover
from gpu_cluster.images.labels import labelled
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Picture
from gpu_cluster.images.thumbnails import Thumbnails
from gpu_cluster.jobs.predict import predict
from gpu_cluster.jobs.report import report
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config
from gpu_cluster.store.embeddings import FoundShard
from gpu_cluster.store.maintenance import inspect, verify
from gpu_cluster.store.shards import opened, read_key
from gpu_cluster.store.store import Store
from gpu_cluster.store.stored import StoredRows
from tests.attacks import cases, seeds
from tests.attacks.cases import Case

MAX_PIXELS = 1_000_000
SIDE = 32


def unexpected(error: BaseException) -> str | None:
    """Return in words what is wrong with an error that ends a job: nothing, if it is one of gpu-cluster's own."""
    if isinstance(error, GpuClusterError) and str(error).strip() and error.exit_code in (1, 2, 3):
        return None
    words = " ".join(str(error).split())[:300]
    return f"unexpected {type(error).__name__}: {words}"


def check(target: str, found: Sequence[Case], template: Path, folder: Path) -> list[str | None]:
    """Try the cases of one target in an empty folder; return for each what is wrong, or None."""
    if target == "pictures":
        return _pictures(found, folder)
    return [_one(_TARGETS[target], case, template, folder / str(number)) for number, case in enumerate(found)]


def _one(target: Callable[[Case, Path, Path], str | None], case: Case, template: Path, folder: Path) -> str | None:
    folder.mkdir()
    try:
        return target(case, template, folder)
    # Whatever it is, it is the result of the case.
    except Exception as error:  # noqa: BLE001
        return unexpected(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Pictures


class _ByPillow(NcnnEngine):
    """Decodes as ncnn's engine does; its numbers are the pixels themselves."""

    def build(self) -> None:
        self.batch_size = self.config.batch_size or 1

    def features(self, pixels: Any) -> Any:
        return pixels.reshape(len(pixels), -1)


@cache
def _engines() -> tuple[Engine, ...]:
    """Return TensorFlow's engine, whose numbers here are the pixels themselves, and one that decodes as ncnn's does."""
    import tensorflow as tf

    n, config = SIDE * SIDE * 3, EmbedConfig(image_size=SIDE, batch_size=16)
    pixels = Extractor({"features": "pixels"}, n, lambda _precision: lambda given: tf.reshape(given, (-1, n)))
    engines = (choose_engine(CpuBackend(), pixels, config), _ByPillow(CpuBackend(), pixels, config))
    for engine in engines:
        engine.build()
    return engines


def _embedded(pictures: Sequence[Picture], engine: Engine) -> tuple[dict[int, np.ndarray[Any, Any]], dict[int, str]]:
    """Return the row or the reason of each picture, by its position, as a job finds them.

    Raises
    ------
    ValueError
        When a picture has neither or both.
    """
    rows, reasons = {}, {}
    for batch in embed_shard(pictures, engine):
        for at, row, why in zip(batch.positions.tolist(), np.array(batch.x), batch.reasons, strict=True):
            if at in rows or at in reasons:
                raise ValueError("a picture twice")
            if why is None:
                rows[at] = row
            else:
                reasons[at] = why
    if len(rows) + len(reasons) != len(pictures):
        raise ValueError("a picture that is neither a row nor has a reason")
    return rows, reasons


def _pictures(found: Sequence[Case], folder: Path) -> list[str | None]:
    """Send pictures through a job's scan and decoding, in both orders, and one of them alone; then make thumbnails."""
    names = [f"{number:05d} {case.name}" for number, case in enumerate(found)]
    for name, case in zip(names, found, strict=True):
        (folder / name).write_bytes(case.content)
    config = InputConfig(images=(folder,), max_pixels=MAX_PIXELS)
    manifest = discover(config, Observer())
    source = open_source(manifest.root)
    manifest = scan(manifest, source, config, Observer())
    # Copies are decoded once in a job, and here too.
    usable = [row for row in range(len(manifest)) if row not in manifest.bad and row not in manifest.duplicates]
    pictures = [Picture(source, manifest.paths[row], manifest.files[row]) for row in usable]
    wrong: dict[str, str] = {}
    with decode.limited(MAX_PIXELS):
        for engine in _engines():
            rows, reasons = _embedded(pictures, engine)
            backwards, _ = _embedded(pictures[::-1], engine)
            alone, _ = _embedded(pictures[:1], engine) if pictures else ({}, {})
            for at, picture in enumerate(pictures):
                why = _wrong_row(
                    rows.get(at), backwards.get(len(pictures) - 1 - at), alone if at == 0 else None, reasons.get(at)
                )
                if why is not None:
                    wrong[picture.location] = f"with the engine {engine.name}: {why}"
        Thumbnails(source, manifest.paths).make(range(len(manifest)), 48)
    passed_over = set(manifest.passed_over)
    for row, path in enumerate(manifest.paths):
        if not manifest.bad.get(row, "a reason").strip():
            wrong[path] = "bad without a reason"
    for name in names:
        if name not in passed_over and name not in manifest.paths:
            wrong[name] = "wrong row: the file is not accounted for"
    return [wrong.get(name) for name in names]


def _wrong_row(row: Any, backwards: Any, alone: dict[int, Any] | None, why: str | None) -> str | None:
    if why is not None:
        return None if why.strip() and row is None else "bad without a reason"
    # Resizing rounds: white can become 255.00005.
    if not np.isfinite(row).all() or row.min() < -0.01 or row.max() > 255.01:
        return "wrong row: no colours"
    if backwards is None or not np.array_equal(row, backwards):
        return "wrong row: other pixels in another order"
    if alone is not None and (0 not in alone or not np.array_equal(row, alone[0])):
        return "wrong row: other pixels alone"
    return None


# Weights, stores, run folders, config, labels


def _weights(case: Case, _template: Path, folder: Path) -> str | None:
    file = folder / case.name
    file.write_bytes(case.content)
    found = vgg16.read_weights(file)
    for name, shape in vgg16.LAYER_SHAPES.items():
        kernel, bias = found.layers[name]
        if (kernel.shape, bias.shape) != (shape, shape[-1:]) or not np.isfinite(kernel).all():
            return f"wrong row: weights of {name} that are not its"
    return None


@cache
def _stored(store: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the embedding of every content in a store."""
    table = opened(cases.stored_file(store, "embeddings.parquet")).read(use_threads=False)
    rows = zip(table["content_hash"].to_pylist(), table["embedding"].to_pylist(), strict=True)
    return {content: np.array(row, np.float32) for content, row in rows if row is not None}


def _shards(case: Case, template: Path, folder: Path) -> str | None:
    store = folder / "store"
    shutil.copytree(template / "store", store)
    file = cases.stored_file(store, case.name)
    key = read_key(cases.stored_file(store, "embeddings.parquet").parent)
    file.write_bytes(case.content)
    if case.name.startswith("named anew "):
        # As somebody would who wants it to be taken for a whole shard.
        import hashlib

        os.replace(file, file.with_name(f"shard-{hashlib.blake2b(case.content, digest_size=16).hexdigest()}.parquet"))
    files = sorted((template / "pictures").glob("*"))
    opened = Store(store, Observer())
    inspect(store)
    known = opened.scans(template / "pictures", {"pillow": "any"}).known(list(map(str, files)))
    known.slice(0, len(files))
    right = _stored(template / "store")
    found = opened.embeddings(key).find(list(right))
    wrong = _wrong_rows(found, right, changed=case.name.startswith("named anew "))
    verify(store, Observer())
    return wrong


def _wrong_rows(found: Iterator[FoundShard], right: dict[str, Any], *, changed: bool) -> str | None:
    """Compare what a store answers with what was put in; the numbers of a shard that was named anew are its own."""
    contents = list(right)
    for shard in found:
        again = StoredRows([shard.path], np.zeros_like(shard.rows), shard.rows, shard.x.shape[1], CpuBackend()).whole()
        if not np.array_equal(again[~np.isnan(shard.x)], shard.x[~np.isnan(shard.x)]):
            return "wrong row: read again, it has other numbers"
        for one, row, why in zip(shard.at.tolist(), shard.x, shard.reasons, strict=True):
            if why is None and not np.isfinite(row).all():
                return "wrong row: a row that is not finite"
            if why is None and not changed and not np.array_equal(row, right[contents[one]]):
                return "wrong row: other numbers than were put in"
    return None


def _runs(case: Case, template: Path, folder: Path) -> str | None:
    """Make a report of a run folder, or predict with it, in which one file is mutated."""
    run = folder / "run"
    shutil.copytree(template / "run", run, ignore=shutil.ignore_patterns("scatter*", "cluster_*"))
    (run / case.name).write_bytes(case.content)
    if case.name.startswith("model/"):
        _with_right_checksum(run / "model")
        config = build_config(
            PredictConfig, images=(template / "pictures",), cache=template / "store", max_bad_fraction=1
        )
        predict(run, config, folder / "predicted.csv")
    else:
        report(run)
        with_links = (run / "report.html").read_text(encoding="utf-8")
        if "etc/hostname" in with_links and Path("/etc/hostname").read_text() in with_links:
            return "a file from outside is in the page"
    return None


def _with_right_checksum(model: Path) -> None:
    """Write the checksum that fits, as somebody would who wants the model to be taken for a whole one."""
    import json

    file = model / "model.json"
    try:
        content = json.loads(file.read_bytes())
        content["sha256"] = checksum(content, (model / "arrays.npz").read_bytes())
        file.write_text(json.dumps(content))
    except (ValueError, TypeError, RecursionError):
        return


def _config(case: Case, _template: Path, folder: Path) -> str | None:
    file = folder / case.name
    file.write_bytes(case.content)
    build_config(RunConfig, file)
    return None


def _labels(case: Case, _template: Path, folder: Path) -> str | None:
    names = tuple(f"{number:03d}.png" for number in range(seeds.N_LABELLED))
    file = folder / case.name
    file.write_bytes(case.content)
    encoding = "latin-1" if case.name.startswith("latin") else None
    config = InputConfig(images=(folder,), labels=file, labels_encoding=encoding)
    found = labelled(Manifest(folder, names), config, Observer())
    if found.labels is None or len(found.labels) != len(names):
        return "wrong row: not a label or None for each file"
    return None


_TARGETS: dict[str, Callable[[Case, Path, Path], str | None]] = {
    "weights": _weights,
    "shards": _shards,
    "runs": _runs,
    "config": _config,
    "labels": _labels,
}


def prepare(target: str, template: Path, folder: Path) -> None:
    """Load what a target needs, and try what is not mutated: it takes the time and memory that no case should count."""
    whole = cases.whole(target, template)
    with in_folder(folder):
        wrong = check(target, [whole], template, folder)
    if wrong != [None]:
        raise ValueError(f"{target} that are not mutated: {wrong[0]}")


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Make a folder for a group of cases, and remove it."""
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
