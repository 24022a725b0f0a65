"""gpu-cluster: a folder of pictures in; clusters, scores and plots out.

`run` does a whole job, `embed` only turns pictures into embeddings, `compare` shows what other ways would give. The
modules, in the order of the flow:

- `cli`: options -> a job; logging, errors, exit codes; `terminal`: what the terminal shows; `signals`: Ctrl-C and
  SIGTERM; `api`: the same from Python
- `cache`: what is kept between runs: looked at, verified, pruned
- `compare`: features times algorithms on the same pictures
- `predict`: new pictures to the clusters of a finished run
- `doctor`: what this machine can run; `selftest`: the same work on its CPU and its GPU, compared
- `pipeline`: the job, from the folder to the run folder; `job`: what it and `compare` begin and end with
- `images`: folder and labels -> Manifest, one look at each file
- `embed`: Manifest -> Embeddings (n, d), from the store or through the network
- `reduce`: Embeddings -> Projection (scale, PCA, whiten, normalise)
- `sweep`: Projection -> Sweep (each k tried) -> the chosen k
- `cluster`: Projection + k -> Clustering
- `score`: everything known about a Clustering in numbers
- `similar`: Embeddings -> pictures that show nearly the same; `layout`: Projection -> a map to look at
- `report`: results -> tables, records, plots; `page`: a run folder -> report.html

They stand on `labels`, `decode`, `thumbnails`, `features` (what turns pictures into numbers: `vgg16` and others),
`model` (what `predict` needs of a run), `kmeans`, `metrics`, `plots`, `picture` (one file: its header, its pixels),
`store` (embeddings and scans on disk, as `shards`), `run_folder`, `results`, `backend` (the one place where devices
differ), `options` (by name, to `config`, the options of each stage), `events`, `files` and `errors`.
"""

from gpu_cluster.api import compare, embed, predict, run
from gpu_cluster.results import RunResult

__all__ = ["RunResult", "compare", "embed", "predict", "run"]
