"""gpu-cluster takes a folder of pictures and produces clusters, scores and plots.

These are the packages and modules, from the top down. A package imports only from those below it; `embedding`,
`clustering` and `report` are on one level and do not import each other:

- `__main__`: lets `python -m gpu_cluster` call the command line
- `cli`: the command line: commands, terminal output, signal handling and exit codes;
  `api`: the same jobs as Python functions; `estimators`: embedding and clustering as scikit-learn does such things
- `jobs`: one module for each job, such as `run`, `compare` and `predict`; `prepare` holds what they begin and end with
- `embedding`: turns pictures into embeddings (n, d), from the store or through a network; `engines` run the networks
- `clustering`: turns arrays into clusters: `reduce`, `sweep`, `cluster`, `score` (with its formulas in `metrics`), near
  duplicates, t-SNE
- `report`: turns results into tables, plots and the page `report.html`
- `images`: the pictures: where they are (`source`), which files are pictures (`discover`), their headers (`scan`),
  labels, pixels (`decode`) and thumbnails
- `store`: keeps embeddings and scans on disk between runs
- `executor`: where the tasks of a job run: in this process, or in the workers of a Dask cluster
- the modules that all of these may use: `notebook` (a line of progress in a notebook), `results` and `records` (what
  passes between packages), `verdict` (whether the groups are clear), `run_folder` (the files of a run), `inventory`
  (which of them are ours), `output` (which folder is written), `staging` (how it is made and gets its name),
  `export_folder` (the same of an export), `export_list` (what is in an export, and how it is undone), `sampling`,
  `manifest` (the list of files), `facts` (what a scan found out about a file), `columns` (texts in little memory),
  `backend` (the only place where the code differs by device), `config` (where every option is declared), `options`
  (combines options, file, preset and defaults), `portable` (what `--portable` leaves out), `events`, `files`, `folders`
  (opens and locks them), `addresses` (names of pictures that are no paths), `errors`, `words`

Where to add a thing: an option in `config`; a command in `jobs` and `cli.commands`; a network engine as a file in
`embedding.engines`; a kind of place with pictures in `images.source`; a score in `clustering.metrics` and `.score`; a
file of the run folder in `run_folder`, and what writes it in `report`; a form of export as a file in `report.exports`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_cluster.api import compare, embed, export, load_run, predict, run, undo_export
    from gpu_cluster.config import CompareConfig, EmbedJobConfig, ExportConfig, PredictConfig, RunConfig
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
    from gpu_cluster.estimators import ImageClusterer, ImageEmbedder, VGG16Embedder
    from gpu_cluster.events import Observer
    from gpu_cluster.export_list import Undone
    from gpu_cluster.jobs.export import Exported
    from gpu_cluster.jobs.loaded import LoadedRun
    from gpu_cluster.jobs.predict import Prediction
    from gpu_cluster.results import Comparison, RunResult

__all__ = [
    "CompareConfig",
    "Comparison",
    "ConfigError",
    "DataError",
    "DeviceError",
    "EmbedJobConfig",
    "ExportConfig",
    "Exported",
    "GpuClusterError",
    "ImageClusterer",
    "ImageEmbedder",
    "InterruptedJobError",
    "JobError",
    "LoadedRun",
    "NothingReadableError",
    "Observer",
    "PredictConfig",
    "Prediction",
    "RunConfig",
    "RunResult",
    "StoreError",
    "Undone",
    "VGG16Embedder",
    "WeightsError",
    "compare",
    "embed",
    "export",
    "load_run",
    "predict",
    "run",
    "undo_export",
]

# The public names are loaded when they are first used: the command line and the processes that decode pictures, which
# must start quickly, use few or none of them. The errors are in `errors`, the functions in `api`.
_ELSEWHERE = {
    "CompareConfig": "config",
    "EmbedJobConfig": "config",
    "ExportConfig": "config",
    "PredictConfig": "config",
    "RunConfig": "config",
    "Observer": "events",
    "Comparison": "results",
    "RunResult": "results",
    "Exported": "jobs.export",
    "LoadedRun": "jobs.loaded",
    "Prediction": "jobs.predict",
    "ImageClusterer": "estimators",
    "ImageEmbedder": "estimators",
    "VGG16Embedder": "estimators",
    "Undone": "export_list",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _ELSEWHERE.get(name, "errors" if name.endswith("Error") else "api")
    globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
