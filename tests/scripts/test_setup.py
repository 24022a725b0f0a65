"""The set-up tells what it does, and what to do if it was interrupted: with a real pip, and an index of this test."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / "scripts" / "setup"

# A project that needs nothing to be built, and is built by itself.
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "build"\nbackend-path = ["."]\n'
BACKEND = """
import zipfile

def build_editable(folder, *given):
    with zipfile.ZipFile(folder + "/project-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("project-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: project\\nVersion: 1\\n")
        wheel.writestr("project-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("project-1.dist-info/RECORD", "")
    return "project-1-py3-none-any.whl"
"""


def write_wheel(index: Path, name: str) -> str:
    """Write a wheel of 2 MB into an index, and return its line in a lock."""
    file = index / name / f"{name}-1-py3-none-any.whl"
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{name}.bin", os.urandom(2_000_000))
        wheel.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.dist-info/RECORD", "")
    return f"{name}==1 --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


class Index(SimpleHTTPRequestHandler):
    """An index of packages; the folder `held`, if it is there, keeps every wheel back."""

    def do_GET(self) -> None:
        while self.path.endswith(".whl") and (Path(self.directory) / "held").exists():
            (Path(self.directory) / "asked").touch()
            time.sleep(0.05)
        super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    place = tmp_path / "checkout"
    (place / "scripts" / "locks").mkdir(parents=True)
    shutil.copy(SETUP, place / "scripts")
    (place / "pyproject.toml").write_text(PYPROJECT + '[project]\nname = "project"\nversion = "1"\n')
    (place / "build.py").write_text(BACKEND)
    run, test = write_wheel(tmp_path / "index", "network"), write_wheel(tmp_path / "index", "checks")
    (place / "scripts" / "locks" / "cpu.txt").write_text(run)
    (place / "scripts" / "locks" / "cpu-test.txt").write_text(run + test)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(tmp_path / "index"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}",
            "PIP_CACHE_DIR": str(tmp_path / "pip"),
            "PIP_CONFIG_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
            "GPU_CLUSTER_EXTRA": "cpu",
            "PYTHON": sys.executable,
        }.items():
            monkeypatch.setenv(name, value)
        yield place
        server.shutdown()


def set_up(checkout: Path, purpose: str) -> list[str]:
    command = ["bash", str(checkout / "scripts" / "setup"), purpose]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


@pytest.mark.slow
def test_an_interrupted_set_up_says_what_to_do_begins_again_and_tells_what_it_does_and_another_adds_to_it(
    checkout, tmp_path
):
    (tmp_path / "index" / "held").mkdir()
    command = ["bash", str(checkout / "scripts" / "setup"), "run"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one system call
    ) as process:
        while not (tmp_path / "index" / "asked").exists():
            assert process.poll() is None
            time.sleep(0.05)
        # As a terminal does, to the script and to pip.
        os.killpg(process.pid, signal.SIGINT)
        _, found = process.communicate(timeout=60)
    assert process.returncode == 130
    assert found.splitlines()[-1].startswith("Set-up was interrupted: run the same command again; ")
    (tmp_path / "index" / "held").rmdir()
    again = set_up(checkout, "run")
    assert again[0] == "Removing .venv: its set-up was interrupted"
    assert again[1].startswith("Setting up .venv with the cpu packages (once; about 490 MB to download")
    assert again[2].endswith(sys.executable)
    assert again[3] == "  downloading network 2.0 MB"
    assert again[4].startswith("  installing (after ")
    assert again[5].startswith("Done after ")
    assert set_up(checkout, "run") == []
    second = set_up(checkout, "test")
    assert second[0].startswith("Adding the packages for the tests to .venv (about 45 MB to download; the other")
    assert second[1] == "  downloading checks 2.0 MB"
    assert set_up(checkout, "test") == []
