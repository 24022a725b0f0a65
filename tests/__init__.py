"""The tests; what is set here holds for the processes that they start too."""

import os

# OpenMP's threads spin while they wait for each other and keep the cores from every other process: beside another test,
# t-SNE of six pictures took 5 s instead of 0.1 s. It is read when OpenMP is loaded, so it is set before all else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# OpenBLAS's threads spin too, and nothing stops them; where each core has a process with tests, one is enough.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
