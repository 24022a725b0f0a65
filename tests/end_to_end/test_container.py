"""What Dockerfile.cuda says, as far as its text shows; scripts/check_container builds and runs it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REGISTRY_ONLY_BY_HASH = {"--require-hashes", "--only-binary", ":all:", "--requirement", "/build/lock.txt"}
REGISTRY_NEVER = {"--no-index", "--no-deps", "--no-build-isolation"}


def read_instructions() -> list[tuple[str, str]]:
    lines = (ROOT / "Dockerfile.cuda").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    return read_instructions()


@pytest.fixture(scope="module")
def final(instructions) -> list[tuple[str, str]]:
    """The instructions of the last stage: what the image is."""
    start = max(number for number, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[start:]


def values(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in instructions if found == word]


def commands(instructions: list[tuple[str, str]]) -> list[str]:
    return [command.strip() for run in values(instructions, "RUN") for command in run.split("&&")]


def test_every_stage_stands_on_the_base_that_the_builder_chooses(instructions, final):
    assert instructions[0] == ("ARG", "BASE_IMAGE=debian:13-slim")
    named = {rest.split(" AS ")[1] for rest in values(instructions, "FROM") if " AS " in rest}
    assert {rest.split(" AS ")[0] for rest in values(instructions, "FROM")} <= {"${BASE_IMAGE}", *named}
    assert final[0] == ("FROM", "${BASE_IMAGE}")


def test_packages_come_from_the_hashed_lock_and_nothing_else_asks_a_registry(instructions):
    assert "EXTRA=gpu" in values(instructions, "ARG")
    assert "scripts/locks/${EXTRA}.txt /build/lock.txt" in values(instructions, "COPY")
    installs = [set(command.split()) for command in commands(instructions) if re.search(r"\bpip\S* install\b", command)]
    assert len(installs) == 2
    locked, project = installs
    assert locked >= REGISTRY_ONLY_BY_HASH
    assert project >= REGISTRY_NEVER


def test_the_final_stage_installs_python_and_no_tools(final):
    assert not [command for command in commands(final) if re.search(r"\b(pip|curl|wget)\b", command)]
    (install,) = (command for command in commands(final) if "apt-get install" in command)
    after = install.split("apt-get install", 1)[1].split()
    assert [word for word in after if not word.startswith("--")] == ["python3"]
    assert "--no-install-recommends" in after


def test_the_image_runs_the_command_as_a_user_without_privileges(final):
    # The exec form: a shell in between would be process 1 and keep TERM from the job.
    assert [json.loads(rest) for rest in values(final, "ENTRYPOINT")] == [["gpu-cluster"]]
    assert not values(final, "CMD")
    # A number, so that an orchestrator can tell that it is not root.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", values(final, "USER")[-1])


def test_runs_go_into_a_volume_by_default(final):
    volumes = json.loads(values(final, "VOLUME")[0])
    assert sorted(volumes) == ["/cache", "/data", "/runs"]
    assert str(Path(values(final, "WORKDIR")[-1]) / "runs") in volumes


def test_the_runtime_is_asked_for_the_cards_and_no_driver_is_refused(final):
    # NVIDIA_REQUIRE_CUDA, which NVIDIA's base images set, would refuse drivers that the lock accepts.
    (settings,) = values(final, "ENV")
    given = dict(setting.split("=", 1) for setting in settings.split())
    nvidia = {name: value for name, value in given.items() if name.startswith("NVIDIA_")}
    assert nvidia == {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def test_what_is_compiled_for_a_card_is_kept_in_the_cache_volume(final):
    (settings,) = values(final, "ENV")
    given = dict(setting.split("=", 1) for setting in settings.split())
    assert given["CUDA_CACHE_PATH"] == "/cache/cuda"
    assert given["CUPY_CACHE_DIR"] == "/cache/cupy"
    assert int(given["CUDA_CACHE_MAXSIZE"]) == 4 << 30


def test_the_label_has_the_version_of_the_project(final):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in values(final, "LABEL")[0]


def test_what_is_copied_is_there_and_let_through(instructions):
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    copies = [rest.split()[:-1] for rest in values(instructions, "COPY") if not rest.startswith("--from=")]
    for source in (source.replace("${EXTRA}", extra) for extra in ("cpu", "gpu") for copy in copies for source in copy):
        assert (ROOT / source).exists(), source
        allowed = re.sub(r"locks/\w+", "locks/*", source)
        assert f"!{allowed}" in ignore, source
