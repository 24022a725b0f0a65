"""Decoding within limits: a slow, large or deadly picture is bad with its reason, and the next one is decoded."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpu_cluster.config import DecodingConfig
from gpu_cluster.images import decode, decoders
from gpu_cluster.images.decode import Header
from gpu_cluster.images.decoders import Decoders, UndecodableError, bytes_needed, is_plain
from gpu_cluster.images.room import Room
from tests.attacks import pictures as attacks
from tests.helpers import picture

HOSTILE = {one.name: one for one in attacks.HOSTILE}


@pytest.fixture
def limits() -> Iterator[Decoders]:
    with decoders.limited(DecodingConfig()) as found:
        yield found


def hostile(folder: Path, name: str) -> Path:
    HOSTILE[name].write(folder / name)
    return folder / name


def header(file: Path) -> Header:
    with file.open("rb") as stream:
        return decode.read_header(stream, file.suffix)


def pixels(limits: Decoders, file: Path) -> np.ndarray:
    with file.open("rb") as stream:
        return limits.pixels(stream, file.suffix, header(file))


def saved(folder: Path, name: str = "good.tif") -> Path:
    picture(0).save(folder / name)
    return folder / name


def assert_goes_on(limits: Decoders, folder: Path) -> None:
    np.testing.assert_array_equal(pixels(limits, saved(folder)), np.asarray(picture(0).convert("RGB")))


def of_this_process() -> list[int]:
    """Return the processes that this one has started and that have not ended."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(child) for file in children for child in file.read_text().split()]


def decoding_process(limits: Decoders) -> int:
    (process,) = limits._all
    return process._process.pid


@pytest.mark.parametrize(
    ("name", "how"), [("scans.jpg", {"progressive": True}), ("one.jpg", {"progressive": True}), ("two.jpg", {})]
)
def test_a_jpeg_with_many_scans_is_not_plain(tmp_path, name, how):
    if name == "scans.jpg":
        found = header(hostile(tmp_path, name))
        assert found.n_scans is not None
        assert found.n_scans > 1_000
        assert not is_plain(found)
        return
    picture(0).save(tmp_path / name, **how)
    found = header(tmp_path / name)
    assert found.n_scans == (10 if how else 1)
    assert is_plain(found)


def test_a_scan_whose_marker_lies_across_two_reads_is_counted(monkeypatch):
    stream = io.BytesIO()
    picture(0).save(stream, "JPEG", progressive=True)
    for size in (7, 64, 1 << 20):
        monkeypatch.setattr(decode, "_READ_BYTES", size)
        stream.seek(0)
        assert decode.count_scans(stream) == 10


@pytest.mark.parametrize(
    ("facts", "plain"),
    [
        (Header("JPEG", "RGB", 6000, 4000, 1, 1), True),
        (Header("JPEG", "RGB", 8000, 7000, 1, 10), False),
        (Header("JPEG", "RGB", 6000, 4000, 1, None), False),
        (Header("PNG", "RGBA", 5000, 5000, 1), True),
        (Header("PNG", "RGBA", 13_000, 13_000, 1), False),
        (Header("TIFF", "RGB", 10, 10, 1), False),
    ],
)
def test_plain_is_what_takes_little_memory_and_time(facts, plain):
    assert is_plain(facts) is plain


@pytest.mark.slow
def test_a_picture_that_is_too_slow_is_given_up_and_the_next_one_is_decoded(tmp_path):
    slow = hostile(tmp_path, "scans.jpg")
    with decoders.limited(DecodingConfig(max_decode_seconds=3)) as limits:
        with pytest.raises(UndecodableError, match=r"^not decoded within --max-decode-seconds 3$") as caught:
            pixels(limits, slow)
        assert not caught.value.lasting
        assert_goes_on(limits, tmp_path)


def test_a_header_that_takes_too_much_memory_is_given_up(limits, tmp_path):
    file = hostile(tmp_path, "icon.ico")
    with file.open("rb") as stream, pytest.raises(UndecodableError, match="needs more memory than the") as caught:
        limits.header(stream, ".ico")
    assert not caught.value.lasting
    assert_goes_on(limits, tmp_path)


def test_pixels_that_take_more_memory_than_the_header_says_are_given_up(limits, tmp_path):
    file = hostile(tmp_path, "large.png inside.icns")
    small = Header("ICNS", "RGBA", 64, 64, 1)
    with file.open("rb") as stream, pytest.raises(UndecodableError, match="needs more memory than the") as caught:
        limits.pixels(stream, ".icns", small)
    assert not caught.value.lasting
    assert_goes_on(limits, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_decoder_that_dies_is_replaced_and_its_picture_has_that_reason(limits, tmp_path, number):
    assert_goes_on(limits, tmp_path)
    slow, process = hostile(tmp_path, "scans.jpg"), decoding_process(limits)
    threading.Timer(0.5, os.kill, (process, number)).start()
    with pytest.raises(UndecodableError, match=rf"^its decoder crashed \({number.name}\)$") as caught:
        pixels(limits, slow)
    assert not caught.value.lasting
    assert_goes_on(limits, tmp_path)
    assert decoding_process(limits) != process


def test_a_picture_that_no_memory_is_enough_for_is_not_begun(limits):
    huge = Header("TIFF", "F", 1_000_000, 1_000_000, 1)
    with pytest.raises(UndecodableError, match=r"decoding it takes about .* MiB, more than half of the memory"):
        limits.pixels(io.BytesIO(b""), ".tif", huge)
    assert not limits._all


def test_pictures_that_are_no_files_are_decoded_too(limits, tmp_path):
    content = saved(tmp_path).read_bytes()
    found = limits.pixels(io.BytesIO(content), ".tif", header(tmp_path / "good.tif"))
    np.testing.assert_array_equal(found, np.asarray(picture(0).convert("RGB")))


@pytest.mark.parametrize("how", [{}, {"progressive": True}])
def test_a_jpeg_is_reduced_in_a_process_as_it_is_here(limits, tmp_path, how):
    picture(3, (330, 270)).save(tmp_path / "a.jpg", **how)
    with (tmp_path / "a.jpg").open("rb") as stream:
        found = limits.pixels(stream, ".jpg", header(tmp_path / "a.jpg"), at_least=32)
        stream.seek(0)
        np.testing.assert_array_equal(found, decode.decode(stream, ".jpg", at_least=32))
    assert found.shape == (68, 83, 3)


def test_a_reduced_jpeg_is_reckoned_with_less_memory_and_is_as_plain_as_before():
    baseline, progressive = (Header("JPEG", "RGB", 4000, 3000, 1, n_scans) for n_scans in (1, 10))
    assert bytes_needed(baseline, 224) < bytes_needed(baseline) / 2
    # All frequencies of a progressive JPEG are held, of every pixel that is stored.
    assert 4000 * 3000 * 6 < bytes_needed(progressive, 224) < bytes_needed(progressive)
    assert bytes_needed(baseline, 3000) == bytes_needed(baseline)
    assert not is_plain(Header("JPEG", "RGB", 12_000, 9_000, 1, 1))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_small_copies_are_the_same_in_the_job_and_in_a_process(limits, tmp_path, name):
    picture(3).save(tmp_path / name)
    with (tmp_path / name).open("rb") as stream:
        found = limits.small(stream, Path(name).suffix, 32)
        stream.seek(0)
        np.testing.assert_array_equal(found, np.asarray(decode.shrunk(stream, Path(name).suffix, 32)))
    assert max(found.shape[:2]) == 32


def test_closing_the_decoders_ends_those_that_decode(tmp_path):
    errors: list[Exception] = []

    def decoded() -> None:
        try:
            pixels(limits, slow)
        except UndecodableError as error:
            errors.append(error)

    limits, slow = Decoders(DecodingConfig()), hostile(tmp_path, "scans.jpg")
    threads = [threading.Thread(target=decoded) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    before = of_this_process()
    limits.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert {str(error) for error in errors} == {"the job ended before it was decoded"}
    assert len(before) > len(of_this_process())


def test_pictures_that_need_all_of_the_memory_are_decoded_one_after_the_other():
    budget, at_once, most = Room(100), 0, 0
    lock = threading.Lock()

    def work(n_bytes: int) -> None:
        nonlocal at_once, most
        with budget.taken(n_bytes):
            with lock:
                at_once += n_bytes
                most = max(most, at_once)
            time.sleep(0.01)
            with lock:
                at_once -= n_bytes

    threads = [threading.Thread(target=work, args=(n_bytes,)) for n_bytes in (60, 60, 30, 10, 70, 20, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert 60 < most <= 100
    # One that needs more than all of it is not refused.
    with budget.taken(1_000):
        pass


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no files in memory")
def test_a_picture_that_is_no_file_is_decoded_without_one_on_a_disk(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    stream = io.BytesIO()
    picture(1).save(stream, "webp", lossless=True)
    with decoders.limited(DecodingConfig()) as limits:
        header = limits.header(stream, ".webp")
        stream.seek(0)
        found = limits.pixels(stream, ".webp", header)
    np.testing.assert_array_equal(found, np.asarray(picture(1)))


def test_as_many_plain_pictures_are_decoded_at_once_as_their_memory_allows(limits):
    assert limits.n_plain_at_once(1) == limits.n_at_once
    assert limits.n_plain_at_once(1 << 60) == 1
    assert bytes_needed(Header("PNG", "RGBA", 1000, 1000, 1)) > 20_000_000


def test_a_module_in_the_current_folder_is_not_run(tmp_path, monkeypatch):
    for name in ("PIL.py", "numpy.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    with decoders.limited(DecodingConfig()) as limits:
        assert_goes_on(limits, tmp_path)


def test_a_process_that_decodes_loads_neither_a_backend_nor_the_options():
    # A job starts one for each core, and what these need takes longer to load than all that decodes.
    program = "import sys, gpu_cluster.images.decoding_process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"gpu_cluster.backend", "gpu_cluster.config", "pydantic"}.isdisjoint(done.stdout.split())


_JOB = """
import sys, threading, time
from pathlib import Path
from tests.images import test_decoders as tests
limits = tests.Decoders(tests.DecodingConfig())
threading.Thread(target=tests.pixels, args=(limits, Path(sys.argv[1])), daemon=True).start()
while not limits._all:
    time.sleep(0.01)
print(tests.decoding_process(limits), flush=True)
time.sleep(60)
"""


def ended(process: int) -> bool:
    try:
        return " Z" in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return True


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_job_that_is_killed_leaves_no_decoder_behind(tmp_path):
    file = saved(tmp_path)
    with subprocess.Popen([sys.executable, "-c", _JOB, file], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        process = int(job.stdout.readline())
        assert not ended(process)
        job.kill()
    assert wait_until(lambda: ended(process))


def test_the_signals_of_a_job_do_not_end_its_decoders(limits, tmp_path):
    assert_goes_on(limits, tmp_path)
    process = decoding_process(limits)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process, number)
    assert_goes_on(limits, tmp_path)
    assert decoding_process(limits) == process


def test_colours_do_not_depend_on_the_process(limits, tmp_path):
    Image.fromarray(np.arange(48 * 40, dtype=np.int32).reshape(40, 48) * 1_000).save(tmp_path / "wide.tif")
    with (tmp_path / "wide.tif").open("rb") as stream:
        here = decode.decode(stream, ".tif")
    np.testing.assert_array_equal(pixels(limits, tmp_path / "wide.tif"), here)
    assert here.min() == 0
    assert here.max() == 255
