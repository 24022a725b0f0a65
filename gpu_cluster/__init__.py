"""gpu-cluster takes a folder of pictures and produces clusters, scores and plots.

These are the packages and modules, from the top down. A package imports only from those below it:

- `cli`: the command line, with its options, its terminal output, its signal handling and its exit codes;
  `api`: the same jobs as Python functions
- `jobs`: one module for each command, such as `run`, `compare` and `predict`; `prepare` holds what they begin and end
  with
- `embedding`: turns pictures into embeddings (n, d), from the store or through a network; `engines` run the networks
- `clustering`: turns arrays into clusters: `reduce`, `sweep`, `cluster`, `score`, near duplicates, t-SNE
- `report`: turns results into tables, plots and the page `report.html`
- `images`: finds picture files and reads their headers, labels and pixels; makes thumbnails
- `store`: keeps embeddings and scans on disk between runs
- the modules that all of these may use: `results` (the records that pass between packages), `verdict` (whether the
  groups are clear), `run_folder`, `options`, `config`, `events`, `files`, `errors`; and `backend`, the only place where
  the code differs by device
"""

from gpu_cluster.api import compare, embed, predict, run
from gpu_cluster.config import CompareConfig, EmbedJobConfig, PredictConfig, RunConfig
from gpu_cluster.errors import (
    ConfigError,
    DataError,
    DeviceError,
    GpuClusterError,
    InterruptedJobError,
    JobError,
    NothingReadableError,
    StoreError,
    WeightsError,
)
from gpu_cluster.events import Observer
from gpu_cluster.jobs.predict import Prediction
from gpu_cluster.results import Comparison, RunResult

__all__ = [
    "CompareConfig",
    "Comparison",
    "ConfigError",
    "DataError",
    "DeviceError",
    "EmbedJobConfig",
    "GpuClusterError",
    "InterruptedJobError",
    "JobError",
    "NothingReadableError",
    "Observer",
    "PredictConfig",
    "Prediction",
    "RunConfig",
    "RunResult",
    "StoreError",
    "WeightsError",
    "compare",
    "embed",
    "predict",
    "run",
]
