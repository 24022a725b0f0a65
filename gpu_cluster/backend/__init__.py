"""The only place where CPU and GPU differ: `base.Backend` is the interface, and `select` chooses the device."""

from gpu_cluster.backend.base import Array, Backend, FloatArray, IntArray, KMeansFit, PCAFit
from gpu_cluster.backend.cpu import CpuBackend
from gpu_cluster.backend.gpu import GpuBackend, describe_gpus
from gpu_cluster.backend.rows import HeldRows, HostRows, JoinedRows, Rows, take
from gpu_cluster.backend.select import Choice, Finding, installed, look_for_gpu, select

__all__ = [
    "Array",
    "Backend",
    "Choice",
    "CpuBackend",
    "Finding",
    "FloatArray",
    "GpuBackend",
    "HeldRows",
    "HostRows",
    "IntArray",
    "JoinedRows",
    "KMeansFit",
    "PCAFit",
    "Rows",
    "describe_gpus",
    "installed",
    "look_for_gpu",
    "select",
    "take",
]
