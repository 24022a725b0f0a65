"""Clusters that cannot be started say what is missing."""

from __future__ import annotations

import sys

import pytest

from gpu_cluster import executor as executors
from gpu_cluster.config import ExecutorConfig
from gpu_cluster.errors import DeviceError
from gpu_cluster.events import Observer


@pytest.mark.parametrize("package", ["distributed", "cryptography"])
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(monkeypatch, package):
    # So Python marks what cannot be imported; the environment of the tests has all packages.
    monkeypatch.setitem(sys.modules, package, None)
    expected = rf"{package} not installed; from a checkout, pip install '.\[cpu,dask\]'"
    with (
        pytest.raises(DeviceError, match=expected),
        executors.opened(ExecutorConfig(workers=2), "cpu", Observer()),
    ):
        pass
