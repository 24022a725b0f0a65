"""Every call to a GPU library fits the signature of the locked wheel: the recorded one here, the real one where it is.

`scripts/check_gpu_contract` runs this in an environment with the real wheels; they import without a card.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpu_cluster.backend import CpuBackend, multi_gpu, tensorflow_devices
from gpu_cluster.backend.select import LEAST_DRIVERS, TENSORFLOW_CODE
from gpu_cluster.errors import ConfigError, DeviceError

from .calls import (
    HANDED_ON,
    SNAPSHOT,
    WHEELS,
    Call,
    bind,
    not_known,
    parameters,
    resolve,
    snapshot,
    source_calls,
    source_reads,
)

RECORDED = json.loads(SNAPSHOT.read_text())
CALLS = source_calls()
LOCK = Path(__file__).parents[2] / "scripts" / "locks" / "gpu.txt"

needs_wheels = pytest.mark.skipif(
    importlib.util.find_spec("cuml") is None,
    reason="needs the GPU wheels (10 GB): scripts/check_gpu_contract makes an environment with them",
)


def identity(call: Call) -> str:
    return f"{call.target} at {call.where}"


def test_the_reader_finds_the_calls_that_matter():
    targets = {call.target for call in CALLS}
    assert {
        "cuml.decomposition.PCA",
        "cuml.decomposition.PCA.fit",
        "cuml.cluster.KMeans",
        "cuml.cluster.HDBSCAN",
        "cuml.dask.cluster.KMeans",
        "cuml.dask.cluster.KMeans.fit",
        "dask.array.from_delayed",
        "cupy.from_dlpack",
        "dask_cuda.LocalCUDACluster",
        "dask_cuda.utils.get_gpu_count",
        "cupy.take",
        "rmm.reinitialize",
        "cudf.DataFrame",
        "cudf.DataFrame.to_parquet",
        "cudf.DataFrame.to_pandas",
        "cupy.linalg.eigh",
        "tensorflow.experimental.dlpack.to_dlpack",
    } <= targets


@pytest.mark.parametrize("call", CALLS, ids=identity)
def test_call_fits_the_recorded_signature(call):
    assert call.target in RECORDED["signatures"], "a new call: write signatures.json again (scripts/check_gpu_contract)"
    bind(call, RECORDED["signatures"][call.target])


@pytest.mark.parametrize("call", [call for call in CALLS if call.target in HANDED_ON], ids=identity)
def test_options_that_are_handed_on_are_known_where_they_arrive(call):
    assert not_known(call, RECORDED["signatures"]) == []
    # cuml.dask adds these itself, and a second one is an error on the worker.
    assert call.target != "cuml.dask.cluster.KMeans" or not {"output_type", "handle"} & set(call.keywords)


@pytest.mark.parametrize(
    "call",
    [
        Call("cuml.dask.cluster.KMeans", 0, ("client", "n_cluster"), "a slip"),
        Call("dask_cuda.LocalCUDACluster", 0, ("n_workers", "rmm_pool"), "an option that is not there"),
        Call("dask_cuda.LocalCUDACluster", 0, ("n_workers", "threads"), "another library's name"),
    ],
    ids=lambda call: call.where,
)
def test_a_wrong_option_is_known_nowhere(call):
    assert not_known(call, RECORDED["signatures"]) == [call.keywords[1]]


def test_only_the_executor_and_the_backend_of_several_cards_know_dask():
    libraries = ("dask", "dask_cuda", "distributed", "raft_dask")
    known = {
        call.where.split(":")[0]
        for call in CALLS
        if call.target.startswith("cuml.dask") or call.target.split(".")[0] in libraries
    }
    assert "backend/multi_gpu.py" in known
    assert all(file == "backend/multi_gpu.py" or file.startswith("executor/") for file in known)


@pytest.mark.parametrize("wheel", WHEELS)
def test_the_record_is_of_the_locked_versions(wheel):
    locked = re.search(rf"^{wheel}==([\w.]+)", LOCK.read_text(), re.MULTILINE)
    assert locked is not None
    assert RECORDED["versions"][wheel] == locked[1]


@pytest.mark.parametrize(
    "call",
    [
        Call("cuml.cluster.KMeans", 0, ("n_cluster",), "a slip"),
        Call("cuml.cluster.KMeans", 1, (), "a positional where only keywords go"),
        Call("rmm.reinitialize", 0, ("pool_size",), "an option that is not there"),
    ],
    ids=lambda call: call.where,
)
def test_a_wrong_call_does_not_fit(call):
    with pytest.raises(TypeError):
        bind(call, RECORDED["signatures"][call.target])


@needs_wheels
@pytest.mark.parametrize("call", CALLS, ids=identity)
def test_call_fits_the_installed_signature(call):
    bind(call, parameters(call.target))


@needs_wheels
def test_the_record_is_what_is_installed():
    installed, recorded = json.loads(json.dumps(snapshot())), RECORDED["signatures"]
    # Python 3.13 gives compiled functions without parameters an empty signature; before, they have none.
    signatures = {
        target: None if found == [] and recorded.get(target) is None else found
        for target, found in installed["signatures"].items()
    }
    assert {**installed, "signatures": signatures} == RECORDED


@needs_wheels
@pytest.mark.parametrize("read", source_reads(), ids=lambda read: f"{read.target} at {read.where}")
def test_what_is_read_of_a_fitted_estimator_is_set_by_its_fit(read):
    estimator, _, attribute = read.target.rpartition(".")
    # The wheels carry the Cython source beside the compiled module.
    kind = resolve({"cuml.dask.cluster.KMeans": "cuml.cluster.KMeans"}.get(estimator, estimator))
    source = next(
        Path(inspect.getfile(resolve(kind.__module__.rpartition(".")[0]))).parent.glob(
            f"{kind.__module__.split('.')[-1]}.pyx"
        )
    )
    assert f"self.{attribute} = " in source.read_text()


@needs_wheels
def test_estimators_are_constructed_for_real():
    pca = resolve("cuml.decomposition.PCA")(n_components=3, svd_solver="full", output_type="cupy")
    assert pca.get_params()["n_components"] == 3
    starts = np.zeros((4, 2), np.float32)
    kmeans = resolve("cuml.cluster.KMeans")(
        n_clusters=4, init=starts, n_init=1, max_iter=1, tol=float(np.finfo(np.float32).tiny), output_type="cupy"
    )
    assert kmeans.get_params()["n_init"] == 1


@needs_wheels
def test_a_cluster_of_cards_shows_each_process_its_own_card_and_refuses_more_workers_than_cards(monkeypatch):
    """With the real dask-cuda: its processes start without cards, and log that they cannot make a context."""
    monkeypatch.setenv("DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,3")
    with (
        multi_gpu.local_cluster(2, dashboard_address=None) as cluster,
        resolve("distributed.Client")(cluster) as client,
    ):
        found = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    assert sorted(found.values()) == ["0", "2"]
    with pytest.raises(ConfigError, match=r"--workers 4: .* this process may use 3"):
        multi_gpu.local_cluster(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(DeviceError, match="name the cards in CUDA_VISIBLE_DEVICES"):
        multi_gpu.local_cluster(1)


@needs_wheels
def test_an_estimator_of_several_cards_has_what_the_model_of_one_worker_has(monkeypatch):
    base = resolve("cuml.dask.common.base")
    monkeypatch.setattr(base, "get_client", lambda client: client)
    kmeans = resolve("cuml.dask.cluster.KMeans")(client=None, n_clusters=4, n_init=1, max_iter=10, tol=1e-30)
    kmeans.internal_model = SimpleNamespace(n_iter_=7)
    assert kmeans.n_iter_ == 7
    assert kmeans.kwargs == {"n_clusters": 4, "n_init": 1, "max_iter": 10, "tol": 1e-30, "verbose": False}


@needs_wheels
def test_the_workers_model_takes_pieces_on_the_card_and_the_starts_of_an_array():
    given = {"n_clusters": 4, "init": np.zeros((4, 2), np.float32), "n_init": 1, "max_iter": 10, "tol": 1e-30}
    model = resolve("cuml.cluster.kmeans_mg.KMeansMG")(handle=None, output_type="cupy", random_state=1, **given)
    model._validate_fit_params()
    # What cuml.dask checks before it begins, on a worker with fewer rows than clusters.
    model.validate([np.zeros((1, 2), np.float32)], rank=0, n_workers=2)


@needs_wheels
def test_cupy_raises_a_memory_error_when_memory_runs_out():
    assert issubclass(resolve("cupy.cuda.memory.OutOfMemoryError"), MemoryError)


@needs_wheels
def test_the_drivers_asked_for_are_those_that_tensorflows_code_needs():
    built = resolve("tensorflow.sysconfig.get_build_info")()
    # `compute_90` is the intermediate form, which the driver compiles for what is newer than the code before it.
    assert built["cuda_compute_capabilities"] == [*TENSORFLOW_CODE, "compute_90"]
    major, minor = map(int, built["cuda_version"].split(".")[:2])
    assert LEAST_DRIVERS[-1][:2] == ((9, 0), 1000 * major + 10 * minor)


@needs_wheels
def test_a_gpu_build_of_tensorflow_without_a_card_says_so_and_computes_on_the_cpu():
    if resolve("cupy").cuda.is_available():
        pytest.skip("a card is here; this is about its absence")
    assert tensorflow_devices.why_no_card() == "TensorFlow sees no card"
    CpuBackend().share_device_with("tensorflow")
    with resolve("tensorflow").device(CpuBackend.tensorflow_device):
        assert float(resolve("tensorflow").ones(())) == 1
