"""Turns a space and a number of clusters k into a Clustering.

This module must not know why this k was chosen.
"""

from __future__ import annotations

import numpy as np

from gpu_cluster.backend import Array, Backend, IntArray, KMeansFit
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.copies import as_originals
from gpu_cluster.config import ClusterConfig
from gpu_cluster.events import Observer
from gpu_cluster.results import Clustering
from gpu_cluster.words import count


def cluster(
    x: Array,
    k: int,
    config: ClusterConfig,
    *,
    sample: int,
    seed: int,
    backend: Backend,
    observer: Observer,
    found: KMeansFit | None = None,
    originals: IntArray | None = None,
) -> Clustering:
    """Cluster x (n, m) into k clusters; drop empty clusters and number the others by size, largest first.

    `found` are centres (k, m) that the sweep found in x for this k, so that no restart is needed; `sample` is the
    number of rows above which restarts run, or ran, on a sample.

    With this order a cluster has the same number in every run and on every device, whichever restart was the best.
    Copies, as named by `originals` (see `copies`), get the label and the distance of their originals.
    """
    xp = backend.xp
    if found is None:
        partition = kmeans.fit(x, k, config, sample=sample, seed=seed, backend=backend)
    else:
        partition = kmeans.finish(x, found, config, sample=sample, backend=backend)
    squared = as_originals(partition.squared_distances, originals, backend)
    as_found = backend.to_host(as_originals(partition.labels, originals, backend))
    order = _by_size(as_found, k)
    if len(order) < k:
        apart = count(len(order), "group")
        observer.notice(f"k was reduced from {k} to {len(order)}, because the pictures that differ form only {apart}")
    number = np.zeros(k, dtype=np.int64)
    number[order] = np.arange(len(order))
    labels = number[as_found]
    return Clustering(
        labels=backend.from_host(labels),
        centres=xp.take(partition.centres, backend.from_host(order), axis=0),
        distances=xp.sqrt(squared),
        sizes=np.bincount(labels),
        medoids=_medoids(squared, labels, backend),
        inertia=partition.inertia,
        n_iter=partition.n_iter,
        k_asked=k,
    )


def of_labels(x: Array, found: IntArray, *, backend: Backend) -> Clustering:
    """Return a Clustering of x (n, m) for the groups `found` (n,), host, of any algorithm; the centres are means."""
    xp = backend.xp
    _held, dense = np.unique(found, return_inverse=True)
    order = _by_size(dense, int(dense.max()) + 1)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    labels = number[dense]
    sizes = np.bincount(labels)
    on_device = backend.from_host(labels)
    sums = kmeans.cluster_sums(x, on_device, len(sizes), backend)
    centres = xp.astype(sums / backend.from_host(sizes.astype(np.float64))[:, None], x.dtype)
    squared = kmeans.squared_distances(x, centres, on_device, backend)
    return Clustering(
        labels=on_device,
        centres=centres,
        distances=xp.sqrt(squared),
        sizes=sizes,
        medoids=_medoids(squared, labels, backend),
        inertia=float(backend.to_host(xp.sum(squared, dtype=xp.float64))),
        n_iter=0,
        k_asked=len(sizes),
    )


def _by_size(labels: IntArray, k: int) -> IntArray:
    """Return the clusters that are not empty, largest first; of two equal sizes, the one with the earlier first row."""
    sizes = np.bincount(labels, minlength=k)
    held, first_rows = np.unique(labels, return_index=True)
    return np.asarray(held[np.lexsort((first_rows, -sizes[held]))], dtype=np.int64)


def _medoids(squared_distances: Array, labels: IntArray, backend: Backend) -> IntArray:
    distances = backend.to_host(squared_distances)
    by_label_then_distance = np.lexsort((distances, labels))
    _held, first = np.unique(labels[by_label_then_distance], return_index=True)
    return np.asarray(by_label_then_distance[first], dtype=np.int64)
