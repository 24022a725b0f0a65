"""Checks that a run gives the same assignments wherever its pictures are, and how often each picture is read.

    .venv/bin/python -m scripts.check_sources [--n N] [--image-size S] [--tars T]

N drawn pictures lie in a folder, in T tar files, and both at the addresses of a real S3 server (moto, a process of its
own), whose log is counted. One of the runs is killed in the middle, and goes on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from scripts.check_workers import BIN, draw

BUCKET = "pictures"
SHARD = 128


@contextmanager
def s3_server(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Start an S3 server; give the block its log, and the environment in which a job finds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "s3.log"
    given = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "checks",
        "AWS_SECRET_ACCESS_KEY": "checks",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with log.open("w") as stream:
        server = subprocess.Popen(
            [BIN / "moto_server", "-H", "127.0.0.1", "-p", str(port)], stdout=stream, stderr=stream
        )
    try:
        while "Running on" not in log.read_text():
            time.sleep(0.1)
        yield log, given
    finally:
        server.terminate()
        server.wait(30)


def upload(files: list[Path], prefix: str, environment: Mapping[str, str]) -> None:
    """Put files into the bucket."""
    os.environ.update(environment)
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for file in files:
        client.upload_file(str(file), BUCKET, f"{prefix}/{file.name}")


def reads(log: Path) -> Counter[str]:
    """Return how often each object was asked for."""
    return Counter(re.findall(rf"GET /{BUCKET}/(\S+) HTTP", log.read_text()))


def command(place: str, work: Path, name: str, store: str, options: list[str]) -> list[str]:
    where = ["--out", str(work / name), "--cache", str(work / store)]
    return [str(BIN / "gpu-cluster"), "run", place, *where, "--quiet", *options]


def digest_of(run: Path) -> tuple[str, int]:
    """Return a digest of all columns of the assignments but the paths, and the number of rows."""
    with (run / "assignments.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    path = rows[0].index("path")
    text = "\n".join(",".join(row[:path] + row[path + 1 :]) for row in rows)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), len(rows) - 1


def killed(words: list[str], store: Path, environment: Mapping[str, str]) -> None:
    """Start a job, and kill it when it has embedded a few shards."""
    with subprocess.Popen(words, env={**os.environ, **environment}) as process:
        while len(list(store.glob("embeddings/*/shard-*"))) < 3:
            if process.poll() is not None:
                raise SystemExit("the job ended before it could be killed")
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--tars", type=int, default=4)
    arguments = parser.parse_args()
    options = ["--features", "vgg16", "--image-size", str(arguments.image_size), "--shard-size", str(SHARD)]
    options += ["--thumbnails", "20", "--k-range", "2:15"]
    wrong = 0
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name)) as (log, environment):
        work = Path(name)
        folder = work / "made"
        folder.mkdir()
        draw(folder, arguments.n)
        files = sorted(folder.iterdir())
        size = -(-len(files) // arguments.tars)
        tars = [work / f"{number:03d}.tar" for number in range(arguments.tars)]
        for number, tar in enumerate(tars):
            with tarfile.open(tar, "w") as stream:
                for file in files[number * size : (number + 1) * size]:
                    stream.add(file, file.name)
        upload(files, "made", environment)
        upload(tars, "tars", environment)
        braces = f"{{000..{arguments.tars - 1:03d}}}.tar"
        places = {
            "folder": str(folder),
            "tar": f"{work}/{braces}",
            "s3": f"s3://{BUCKET}/made",
            "s3 tar": f"s3://{BUCKET}/tars/{braces}",
        }
        found = {}
        for what, place in places.items():
            for again in ("", ", again"):
                before, start = reads(log), time.perf_counter()
                subprocess.run(
                    command(place, work, what + again, f"{what} store", options),
                    env={**os.environ, **environment},
                    check=True,
                )
                seconds, more = time.perf_counter() - start, reads(log) - before
                found[what + again] = digest_of(work / (what + again))
                times = Counter(more.values())
                print(
                    f"{what}{again}: {found[what + again]}, {seconds:.0f} s, objects by reads: {dict(times)}",
                    flush=True,
                )
        wrong += len(set(found.values())) - 1
        before = reads(log)
        words = command(places["s3"], work, "killed", "killed store", options)
        killed(words, work / "killed store", environment)
        until = reads(log) - before
        subprocess.run(words, env={**os.environ, **environment}, check=True)
        times = Counter((reads(log) - before).values())
        print(
            f"killed in the middle: {dict(Counter(until.values()))} by then, {dict(times)} in all; "
            f"{digest_of(work / 'killed')}"
        )
        wrong += digest_of(work / "killed") != found["folder"] or max(times) > 3 or times[3] > 2 * SHARD
    print("the same assignments" if not wrong else "DIFFERENT")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
