"""The exceptions of gpu-cluster, each with the exit code that the command line ends with.

A message says on one line what was expected, what was found and what to do. Knows nothing else of the package.
"""


class GpuClusterError(Exception):
    """The base class of every error that gpu-cluster raises deliberately."""

    exit_code = 1


class ConfigError(GpuClusterError):
    """An option or a config file is wrong; almost always found before work starts."""

    exit_code = 2


class DataError(GpuClusterError):
    """The named images, labels, run folder or model cannot be used; usually found before work starts."""

    exit_code = 2


class WeightsError(GpuClusterError):
    """The weights of the network are missing, damaged or of another network; usually found before work starts."""

    exit_code = 2


class DeviceError(GpuClusterError):
    """The device asked for cannot be used, or has too little memory."""

    exit_code = 1


class JobError(GpuClusterError):
    """The job failed while it ran."""

    exit_code = 1


class StoreError(JobError):
    """The store of embeddings cannot be read or written; what it holds stays as it is."""


class InterruptedJobError(JobError):
    """The job was asked to stop, and stopped at a moment when nothing is lost."""


class NothingReadableError(JobError):
    """None of the files found could be decoded; the run folder holds the reasons and no clusters."""

    exit_code = 3
