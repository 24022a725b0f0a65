"""Writes a run as a dataset of FiftyOne, in its own format `FiftyOneDataset`: no picture is copied, each is named.

The format is that of `fiftyone.utils.data.FiftyOneDatasetImporter`; documents are in MongoDB's Extended JSON. FiftyOne
is not needed. This module must not know where the run comes from.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.events import Observer, interrupted
from gpu_cluster.files import escaped, unescaped
from gpu_cluster.words import count

#: The files of this format, and the folder of the maps.
METADATA, SAMPLES, MAPS = "metadata.json", "samples.json", "brain"

# FiftyOne changes what an earlier version wrote into its own form, and does not read what a later one wrote. 1.0.0 is
# the first version whose samples have the times that are declared here.
_VERSION = "1.0.0"

# The 2-D positions of a run by their columns, under the names that they have in FiftyOne.
_MAPS: Mapping[str, tuple[str, str]] = {"tsne": ("tsne1", "tsne2"), "pca": ("pc1", "pc2")}

_FIELDS = "fiftyone.core.fields."
_CLASSIFICATION = "fiftyone.core.labels.Classification"

# Samples between two looks at whether to stop.
_AT_A_TIME = 4_096


def write_fiftyone(folder: Path, pictures: Any, root: str | None, observer: Observer) -> None:
    """Write `metadata.json`, `samples.json` and the maps into a folder.

    A sample has the path of its picture, the cluster as a classification, the label as `ground_truth`, and the
    other columns of the table as fields. The positions on the maps are results of FiftyOne's Brain; its App shows them.

    Parameters
    ----------
    folder
        An empty folder.
    pictures
        Data frame with one row for each picture: the columns of `assignments.parquet`, and `group`, the name of its
        cluster, if there are names.
    root
        The folder of the pictures; None if it is not known: then the paths are relative, and whoever loads the dataset
        gives it as `rel_dir`.

    Raises
    ------
    InterruptedJobError
        When the observer asked to stop.
    OSError
        When a file cannot be written.

    Memory: 130 bytes for each picture.
    """
    ids = [_id("sample", path) for path in pictures["path"]]
    maps = {name: columns for name, columns in _MAPS.items() if all(one in pictures for one in columns)}
    (folder / METADATA).write_bytes(_as_json(_dataset(maps)))
    # A relative path would be one below the export.
    place = "" if root is None else os.path.abspath(root)
    with (folder / SAMPLES).open("wb") as stream:
        stream.write(b'{"samples": [')
        for number, sample in enumerate(_samples(pictures, ids, place)):
            stream.write((b"," if number else b"") + b"\n" + _as_json(sample))
            if not (number + 1) % _AT_A_TIME:
                observer.progress("export", number + 1, len(ids))
                if observer.stopping():
                    raise interrupted()
        stream.write(b"\n]}\n")
    observer.progress("export", len(ids), len(ids))
    for name, columns in maps.items():
        (folder / MAPS).mkdir(exist_ok=True)
        (folder / MAPS / f"{name}.json").write_bytes(_as_json(_map(pictures[list(columns)].to_numpy(np.float32), ids)))
    _tell_of_names([path for path in pictures["path"] if not _is_text(_file(place, path))], observer)


def _tell_of_names(paths: list[str], observer: Observer) -> None:
    if paths:
        verb = "is" if len(paths) == 1 else "are"
        observer.notice(
            f"FiftyOne names files in UTF-8 only: {count(len(paths), 'picture')} whose path {verb} not UTF-8 {verb} in "
            f"the dataset, but FiftyOne will not find the file (the first is {paths[0]})"
        )


def _file(place: str, shown: str) -> str:
    """Return the path of the file of a picture, which a table shows so, in the folder of the pictures."""
    return os.path.join(place, unescaped(shown))


def _is_text(path: str) -> bool:
    # Bytes that are not UTF-8 are halves of surrogate pairs in Python's paths.
    return not any("\ud800" <= one <= "\udfff" for one in path)


def _samples(pictures: Any, ids: list[str], place: str) -> Iterator[dict[str, Any]]:
    for sample_id, row in zip(ids, pictures.itertuples(index=False), strict=True):
        found = row._asdict()
        shown = str(found["path"])
        file, label, group = _file(place, shown), found.get("label"), found.get("group")
        yield {
            "_id": {"$oid": sample_id},
            # What is not UTF-8 cannot be in a database of texts.
            "filepath": file if _is_text(file) else escaped(file),
            "tags": [],
            "metadata": None,
            "_media_type": "image",
            # FiftyOne sorts by it for a random order.
            "_rand": int(sample_id, 16) / 16 ** len(sample_id),
            "path": shown,
            "cluster": _classification("cluster", shown, str(found["cluster"])),
            "group": group if isinstance(group, str) else None,
            "ground_truth": _classification("label", shown, label) if isinstance(label, str) else None,
            "distance": _number(found["distance"]),
            "silhouette": _number(found.get("silhouette")),
            "is_medoid": bool(found.get("is_medoid", False)),
            "content_hash": found.get("content_hash"),
        }


def _classification(kind: str, path: str, label: str) -> dict[str, Any]:
    return {"_id": {"$oid": _id(kind, path)}, "_cls": "Classification", "tags": [], "label": label}


def _number(value: Any) -> float | None:
    """Return a number that JSON has; a silhouette that was not computed is none."""
    return None if value is None or not np.isfinite(value) else float(value)


def _id(kind: str, path: str) -> str:
    """Return the id of a document, 24 hexadecimal digits: the same export has the same ids."""
    return hashlib.blake2b(f"{kind} {path}".encode(), digest_size=12).hexdigest()


def _dataset(maps: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of the dataset: its fields, and the maps."""
    read_only = [_field("created_at", "DateTimeField"), _field("last_modified_at", "DateTimeField")]
    return {
        "version": _VERSION,
        "media_type": "image",
        "persistent": False,
        "tags": [],
        "info": {},
        "app_config": {},
        "classes": {},
        "default_classes": [],
        "mask_targets": {},
        "default_mask_targets": {},
        "skeletons": {},
        "group_media_types": {},
        "sample_fields": [
            _field("id", "ObjectIdField", db_field="_id"),
            _field("filepath", "StringField"),
            _field("tags", "ListField", subfield=f"{_FIELDS}StringField"),
            _field("metadata", "EmbeddedDocumentField", document="fiftyone.core.metadata.ImageMetadata"),
            *({**field, "read_only": True} for field in read_only),
            _field("_media_type", "StringField"),
            _field("_rand", "FloatField"),
            _field("_dataset_id", "ObjectIdField"),
            _field("path", "StringField"),
            _classifications("cluster"),
            _field("group", "StringField"),
            _classifications("ground_truth"),
            _field("distance", "FloatField"),
            _field("silhouette", "FloatField"),
            _field("is_medoid", "BooleanField"),
            _field("content_hash", "StringField"),
        ],
        "frame_fields": [],
        "saved_views": [],
        "workspaces": [],
        "annotation_runs": {},
        "brain_methods": {name: _map_run(name) for name in maps},
        "evaluations": {},
        "runs": {},
    }


def _field(
    name: str,
    kind: str,
    *,
    db_field: str | None = None,
    subfield: str | None = None,
    document: str | None = None,
    fields: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    return {
        "name": name,
        "ftype": f"{_FIELDS}{kind}",
        "embedded_doc_type": document,
        "subfield": subfield,
        "fields": list(fields),
        "db_field": db_field or name,
        "description": None,
        "info": None,
        "read_only": False,
    }


def _classifications(name: str) -> dict[str, Any]:
    fields = (
        _field("id", "ObjectIdField", db_field="_id"),
        _field("tags", "ListField", subfield=f"{_FIELDS}StringField"),
        _field("label", "StringField"),
        _field("confidence", "FloatField"),
        _field("logits", "VectorField"),
    )
    return _field(name, "EmbeddedDocumentField", document=_CLASSIFICATION, fields=fields)


def _map_run(name: str) -> dict[str, Any]:
    """Return what the dataset says of a map: points that were computed elsewhere."""
    return {
        "key": name,
        "version": _VERSION,
        "timestamp": {"$date": "1970-01-01T00:00:00Z"},
        "config": {
            "cls": "fiftyone.brain.visualization.ManualVisualizationConfig",
            "type": "visualization",
            "method": "manual",
            "num_dims": 2,
        },
        "results": None,
    }


def _map(points: Any, ids: list[str]) -> dict[str, Any]:
    """Return the results of a map: points (n, 2) float32, and the ids of their samples."""
    return {
        "cls": "fiftyone.brain.visualization.VisualizationResults",
        "points": _packed(points),
        "sample_ids": _packed(np.array(ids)),
        "label_ids": None,
    }


def _packed(array: Any) -> str:
    """Return an array as FiftyOne's results hold it (`fiftyone.core.utils.serialize_numpy_array`)."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(stream.getvalue())).decode()


def _as_json(content: Mapping[str, Any]) -> bytes:
    # ASCII: every escape that is left is one of JSON.
    return json.dumps(content, allow_nan=False).encode()
