"""gpu-cluster: a folder of pictures in; clusters, scores and plots out.

The rooms, from the top down; imports go down only:

- `cli`: the command line: options, what the terminal shows, signals, exit codes; `api`: the same jobs from Python
- `jobs`: a command a file: `run`, `compare`, `predict`, `doctor`, `selftest`; `prepare` is how they begin and end
- `embedding`: pictures -> embeddings (n, d), by the store or through a network; `engines` run the networks
- `clustering`: arrays -> clusters: `reduce`, `sweep`, `cluster`, `score`, near duplicates, t-SNE
- `report`: results -> tables, plots, the page `report.html`
- `images`: pictures as files: which there are, headers, labels, pixels, thumbnails
- `store`: embeddings and scans on disk, between runs
- the ground: `results` (records that flow between the rooms), `run_folder`, `options` and `config`, `events`, `files`,
  `errors`; and `backend`, the one place where devices differ
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
