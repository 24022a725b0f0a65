"""The tables of a run folder: what is in them comes back exactly."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import RunConfig
from gpu_cluster.manifest import FileFacts, Manifest
from gpu_cluster.options import build_config
from gpu_cluster.report.tables import write_run_record
from gpu_cluster.results import JobRecord

# One more than a float64 can hold.
NANOSECONDS = 1_790_000_000_000_000_001


def test_numbers_of_files_are_whole_to_the_last_digit_where_one_is_missing(tmp_path):
    files = (FileFacts(size=2**53 + 1, mtime_ns=NANOSECONDS, width=3), FileFacts(reason="it is gone"))
    manifest = Manifest(tmp_path, ("a.png", "b.png"), files, bad={1: "it is gone"})
    config = build_config(RunConfig)
    record = JobRecord(config, manifest, [(tmp_path / "weights.h5", "0")], [], {"device": "cpu"}, "asked for", {}, ())
    write_run_record(tmp_path, record, None, command="gpu-cluster run", backend=CpuBackend())
    found = pd.read_parquet(tmp_path / "manifest.parquet")
    assert found["mtime_ns"].tolist() == [NANOSECONDS, pd.NA]
    assert found["size"].tolist() == [2**53 + 1, pd.NA]
    assert found["width"].dtype == "Int64"
    assert found["label"].isna().all()
    assert json.loads((tmp_path / "run.json").read_text())["repeats"] == CpuBackend().repeats


def test_floats_of_the_csv_are_those_of_the_parquet_file_bit_for_bit(sample_run):
    floats = ["distance", "silhouette", "pc1", "pc2", "tsne1", "tsne2"]
    csv = pd.read_csv(sample_run.folder / "assignments.csv", dtype=dict.fromkeys(floats, np.float32))
    parquet = pd.read_parquet(sample_run.folder / "assignments.parquet")
    pd.testing.assert_frame_equal(csv[floats], parquet[floats], check_exact=True)
