"""Files are written whole, where the folder allows no more than that too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user who may write in a folder but not list it")
def test_a_file_is_written_where_the_folder_cannot_be_flushed(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    code = (
        "import os, sys; from pathlib import Path; from gpu_cluster.files import write_whole; os.chdir(sys.argv[1]); "
        "os.setuid(54321); write_whole(Path('a.txt'), b'whole')"
    )
    place.chmod(0o333)
    done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [(file.name, file.read_text()) for file in place.iterdir()] == [("a.txt", "whole")]
