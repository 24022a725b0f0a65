"""The one place where CPU and GPU differ: `base.Backend` is the seam, `cpu.CpuBackend` the CPU's side of it."""

from gpu_cluster.backend.base import Array, Backend, KMeansFit, PCAFit
from gpu_cluster.backend.cpu import CpuBackend

__all__ = ["Array", "Backend", "CpuBackend", "KMeansFit", "PCAFit"]
