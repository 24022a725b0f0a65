"""The engine TensorFlow, where it differs from what `test_shards` shows of every engine."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers import write_pictures


def test_a_process_that_is_killed_leaves_nothing_in_the_temporary_folder(tmp_path):
    # TensorFlow's autograph writes the functions that it converts into files, and removes them when Python ends.
    files = write_pictures(tmp_path / "in", 2)
    (tmp_path / "tmp").mkdir()
    code = (
        "import os, signal, sys, gpu_cluster\n"
        "assert gpu_cluster.embed(sys.argv[1:], image_size=32, no_cache=True).shape == (2, 1024)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run([sys.executable, "-c", code, *files], env=environment, check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    assert list((tmp_path / "tmp").iterdir()) == []
