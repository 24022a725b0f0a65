"""Loads the export of a run for FiftyOne into a real FiftyOne, and compares its samples with the run.

This runs in FiftyOne's own environment, without gpu-cluster: FiftyOne needs other versions of some packages.

    python3 -m venv /tmp/fiftyone && /tmp/fiftyone/bin/pip install fiftyone pyarrow
    .venv/bin/gpu-cluster export RUN --to fiftyone --out EXPORT
    /tmp/fiftyone/bin/python scripts/check_fiftyone.py RUN EXPORT

FiftyOne starts a MongoDB of its own; where its package could not download one, FIFTYONE_DATABASE_URI names another. For
the export of a portable run, `--root DIR` is the folder that the paths are relative to. The exit code is 1 if anything
is not as in the run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def compared(dataset: Any, pictures: pd.DataFrame) -> Iterator[tuple[str, bool]]:
    """Yield what was compared with the run, and whether it is the same."""
    yield f"{len(dataset):,} samples, in the order of the run", dataset.values("path") == list(pictures["path"])
    yield "the cluster of each", dataset.values("cluster.label") == [str(one) for one in pictures["cluster"]]
    labels = [label if isinstance(label, str) else None for label in pictures["label"]]
    yield "the label of each", dataset.values("ground_truth.label") == labels
    for name in ("distance", "silhouette"):
        found = np.array(dataset.values(name), np.float64).astype(np.float32)
        yield f"the {name} of each", np.array_equal(found, pictures[name].to_numpy(np.float32), equal_nan=True)
    for name in ("is_medoid", "content_hash"):
        yield f"{name} of each", dataset.values(name) == list(pictures[name])
    n_files = sum(map(os.path.isfile, dataset.values("filepath")))
    # FiftyOne cannot name a file whose path is not UTF-8; the tables write its bytes as escapes.
    n_named = sum("\\x" not in path for path in pictures["path"])
    yield f"{n_files:,} of the files are there", n_files >= n_named
    for key, columns in {"tsne": ["tsne1", "tsne2"], "pca": ["pc1", "pc2"]}.items():
        results = dataset.load_brain_results(key)
        same = np.array_equal(results.points, pictures[columns].to_numpy(np.float32))
        yield f"the map {key} of each", same and list(results.sample_ids) == dataset.values("id")
    counted = dataset.count_values("cluster.label")
    sizes = {str(number): int(n) for number, n in pictures["cluster"].value_counts().items()}
    yield f"FiftyOne counts {len(counted)} clusters", counted == sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("export", type=Path, help="what gpu-cluster export --to fiftyone wrote")
    parser.add_argument("--root", type=Path, help="the folder of the pictures, for the export of a portable run")
    arguments = parser.parse_args()
    # Not installed where gpu-cluster is.
    fiftyone = import_module("fiftyone")
    print(f"FiftyOne {fiftyone.__version__}")
    dataset = fiftyone.Dataset.from_dir(
        dataset_dir=str(arguments.export),
        dataset_type=fiftyone.types.FiftyOneDataset,
        **({} if arguments.root is None else {"rel_dir": str(arguments.root)}),
    )
    print(dataset)
    good = True
    try:
        for what, is_same in compared(dataset, pd.read_parquet(arguments.run / "assignments.parquet")):
            print(f"{'ok' if is_same else 'WRONG'}: {what}", flush=True)
            good = good and is_same
    finally:
        dataset.delete()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
