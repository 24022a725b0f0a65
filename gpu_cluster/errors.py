"""The exceptions of gpu-cluster, each with the exit code that the command line ends with.

A message says on one line what was expected, what was found and what to do. Knows nothing else of the package.
"""


class GpuClusterError(Exception):
    """Base of every error that gpu-cluster raises on purpose."""

    exit_code = 1


class ConfigError(GpuClusterError):
    """An option or a config file is wrong; seen before work starts."""

    exit_code = 2


class DataError(GpuClusterError):
    """The images or the labels named cannot be used; seen before work starts."""

    exit_code = 2


class WeightsError(GpuClusterError):
    """The weights of the network are missing, damaged or of another network; seen before work starts."""

    exit_code = 2


class DeviceError(GpuClusterError):
    """The device asked for is not there, or has too little memory."""

    exit_code = 1


class JobError(GpuClusterError):
    """The job failed while it ran."""

    exit_code = 1


class StoreError(JobError):
    """The store of embeddings cannot be read or written; what it holds stays as it is."""


class InterruptedJobError(JobError):
    """The job was asked to stop and did, at a moment that loses nothing."""


class NothingReadableError(JobError):
    """Not one of the files found could be decoded; the run folder holds the reasons and no clusters."""

    exit_code = 3
