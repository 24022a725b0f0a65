"""A model of a run: how long each stage takes for n pictures on some cards or cores, and which stage limits it.

It is arithmetic on constants: seconds a picture that were measured on 2 cores of a CPU (README, docs), and bandwidths
and speeds of cards that were published and not measured by us. `docs/scale.md` shows its tables. `fitted` replaces the
constants by those of a run that was measured, so that the model can be held against another run.

    .venv/bin/python -m scripts.scale_model [--picture 1MP] [--cores-a-card 16]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpu_cluster.backend.places import BYTES_A_ROW

STAGES = ("scan", "read", "decode", "transfer", "network", "store", "covariance", "sweep", "fit")
# The phases of a run in their order: what `fitted` takes. `embed` is read, decode, transfer, network and store.
PHASES = ("scan", "embed", "reduce", "sweep", "fit")
_EMBED = ("read", "decode", "transfer", "network", "store")
_LEADING = {"embed": _EMBED, "reduce": ("covariance",), "sweep": ("sweep",), "fit": ("fit",)}

# Multiply-adds of VGG16's convolutions for a picture of 224 x 224: He et al. 2015 (arXiv 1512.03385) give 15.3 billion.
# A multiply-add is 2 floating-point operations.
NETWORK_FLOPS = 2 * 15_346_630_656
# What goes to a card for a picture: 224 x 224 x 3 float32.
_PIXEL_BYTES = 224 * 224 * 3 * 4
_N_FEATURES, _N_COLUMNS = 1024, 32
_SAMPLE = 20_000


@dataclass(frozen=True)
class Picture:
    """A JPEG of quality 75: the bytes of its file, and the seconds that one core takes to decode and resize it."""

    file_bytes: float
    decode_core_s: float


# docs/recipe.md, "What pixels the network gets": tf.data on an AMD EPYC (Zen 4).
PICTURES = {
    "500x375": Picture(46e3, 2.28e-3),
    "1MP": Picture(184e3, 5.69e-3),
    "3MP": Picture(432e3, 8.42e-3),
    "12MP": Picture(1379e3, 21.70e-3),
}


@dataclass(frozen=True)
class Card:
    """A card by its published data sheet: tf32 operations a second without sparsity, memory, bandwidths in bytes/s."""

    flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float


CARDS = {
    # NVIDIA A100 40 GB SXM data sheet: 156 TFLOPS in tf32, 1,555 GB/s, PCI Express 4 (32 GB/s each way).
    "A100": Card(156e12, 40e9, 1.555e12, 32e9),
    # NVIDIA H100 SXM data sheet: 989 TFLOPS in tf32 with sparsity, half of it without, 3,350 GB/s, PCI Express 5.
    "H100": Card(494.7e12, 80e9, 3.35e12, 64e9),
}


@dataclass(frozen=True)
class Constants:
    """What a picture costs. Core seconds are seconds of one core; those of the driver are seconds on 2 cores of it."""

    # README: a second scan of 100,000 files took 5.6 s (listing, status, look-up), the first one 7.2 s more on 2 cores.
    driver_file_s: float = 56e-6
    scan_core_s: float = 144e-6
    # BLAKE2b on one core.
    hash_bytes_a_core_s: float = 0.9e9
    # How long this machine decodes a picture, as a multiple of what `Picture` says.
    decode_factor: float = 1.0
    # docs/engines.md: ncnn.
    network_core_s: float = 0.124
    # README, bench_scale: 15.2 s to find 1,000,000 embeddings in the store.
    lookup_s: float = 15e-6
    # README, bench_store: 0.44 ms on 2 cores for decoding a small picture, a trivial network and the store, together.
    store_core_s: float = 0.9e-3
    # Until a worker's first picture: the libraries and the network.
    start_s: float = 5.0
    # docs/store.md: to start the pipeline of a shard.
    shard_s: float = 0.08
    # README, bench_scale: 21.2 s for 1,000,000, and a part that does not grow: the eigenvectors of 1,024 x 1,024.
    covariance_core_s: float = 42e-6
    covariance_s: float = 0.25
    # README, bench_scale: restarts on a sample of 20,000 for 14 k, and what all rows cost in the passes that carry them
    # on (5.0 s for 1,000,000, 8.0 to 8.4 s for 3,000,000).
    sweep_sample_s: float = 3.5
    sweep_row_s: float = 1.6e-6
    # README, bench_scale: cluster and score.
    fit_row_s: float = 1.1e-6
    score_sample_s: float = 1.3
    # Assumed: the share of a card's published speed that VGG16 reaches, and of a link's from memory that is not pinned.
    card_share: float = 0.4
    link_share: float = 0.4
    # Assumed, of a shared file system: what all workers together read, and how many files they open.
    file_system_bytes_s: float = 2e9
    file_system_files_s: float = 20_000.0


# For a run whose files are in the memory of the machine already, as those of a bench are.
CACHED = Constants(file_system_bytes_s=1e12, file_system_files_s=1e9)


@dataclass(frozen=True)
class Plan:
    """A run: n pictures of one kind on workers with some cores each, and a card each if `card` is given."""

    n: int
    workers: int = 1
    cores_a_worker: float = 2
    card: Card | None = None
    picture: Picture = PICTURES["1MP"]
    shard_size: int | None = None

    @property
    def cores(self) -> float:
        return self.workers * self.cores_a_worker

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n / (self.shard_size or (256 if self.card is None else 4096)))


def stage_seconds(plan: Plan, constants: Constants | None = None) -> dict[str, float]:
    """Return the seconds that each stage would take alone; those of `embed` overlap on cards, see `phase_seconds`."""
    c, n, picture = constants or Constants(), plan.n, plan.picture
    # The last round of shards leaves workers idle: all others wait for the one with a shard more.
    idle = math.ceil(plan.n_shards / plan.workers) * plan.workers / plan.n_shards
    read = _reading(plan, c)
    embedding_bytes = 4 * _N_FEATURES * n
    seconds = dict.fromkeys(STAGES, 0.0)
    seconds["scan"] = n * c.driver_file_s + max(read, _hashing(plan, c))
    seconds["read"] = read
    seconds["decode"] = n * c.decode_factor * picture.decode_core_s / plan.cores * idle
    seconds["store"] = n * c.lookup_s + max(
        n * c.store_core_s / plan.cores * idle, embedding_bytes / c.file_system_bytes_s
    )
    if plan.card is None:
        seconds["network"] = n * c.network_core_s / plan.cores * idle
    else:
        seconds["transfer"] = n * _PIXEL_BYTES / (c.link_share * plan.card.link_bandwidth) / plan.workers * idle
        seconds["network"] = n * NETWORK_FLOPS / (c.card_share * plan.card.flops) / plan.workers * idle
    # The embeddings are read twice: for the covariance, and to be projected.
    seconds["covariance"] = c.covariance_s + max(
        n * c.covariance_core_s / plan.cores, 2 * embedding_bytes / c.file_system_bytes_s
    )
    seconds["sweep"], seconds["fit"] = _on_the_driver(plan, c)
    return seconds


def _reading(plan: Plan, c: Constants) -> float:
    return plan.n * max(plan.picture.file_bytes / c.file_system_bytes_s, 1 / c.file_system_files_s)


def _hashing(plan: Plan, c: Constants) -> float:
    return plan.n * (c.scan_core_s + plan.picture.file_bytes / c.hash_bytes_a_core_s) / plan.cores


# Passes over all rows: the sweep's with centres of all k (`carry_on.MOST_ITERATIONS` and one more), and those of a fit
# of some 20 iterations, each of which reads rows that are streamed three times (cuVS: a pass, the inertia, the labels).
_SWEEP_PASSES, _FIT_PASSES = 6, 60


def _on_the_driver(plan: Plan, c: Constants) -> tuple[float, float]:
    """Return the seconds of the sweep and of the fit, which run on the driver's device alone.

    No card was timed: what runs on a sample is taken to take as long as on 2 cores, which is an upper bound. A pass
    over all rows takes what it takes to read them, from the card's memory, or over the link if they do not fit.
    """
    share = min(plan.n, _SAMPLE) / _SAMPLE
    # The exponent fits 720, 10,000 and 20,000 rows: more rows need fewer iterations each.
    sample, score = c.sweep_sample_s * share**0.6, c.score_sample_s * share**2
    if plan.card is None:
        return sample + plan.n * c.sweep_row_s, score + plan.n * c.fit_row_s
    matrix = 4 * _N_COLUMNS * plan.n
    fits = matrix + BYTES_A_ROW * plan.n <= plan.card.memory_bytes
    bandwidth = plan.card.memory_bandwidth if fits else c.link_share * plan.card.link_bandwidth
    return sample + _SWEEP_PASSES * matrix / bandwidth, score + _FIT_PASSES * matrix / bandwidth


def phase_seconds(plan: Plan, constants: Constants | None = None) -> dict[str, float]:
    """Return the seconds of each phase of a run, which follow each other.

    Where there are cards, the stages of `embed` go on at the same time, so the slowest counts; without cards, all but
    reading need the same cores, so their seconds add up.
    """
    c = constants or Constants()
    stages = stage_seconds(plan, c)
    busy = [stages[stage] for stage in _EMBED]
    work = max(busy) if plan.card is not None else max(stages["read"], sum(busy) - stages["read"])
    starting = c.start_s + c.shard_s * math.ceil(plan.n_shards / plan.workers)
    return {
        "scan": stages["scan"],
        "embed": work + starting,
        "reduce": stages["covariance"],
        "sweep": stages["sweep"],
        "fit": stages["fit"],
    }


def total_seconds(plan: Plan, constants: Constants | None = None) -> float:
    """Return the seconds of a whole run, without the report."""
    return sum(phase_seconds(plan, constants).values())


def bottleneck(plan: Plan, constants: Constants | None = None) -> str:
    """Return the stage to which most of the time goes: the longest of the longest phase.

    For a scan, its longest part: `scan: driver` (listing), `scan: read` (the file system) or `scan: hash` (cores).
    """
    c = constants or Constants()
    phases, stages = phase_seconds(plan, c), stage_seconds(plan, c)
    longest = max(phases, key=lambda phase: phases[phase])
    if longest == "scan":
        parts = {"driver": plan.n * c.driver_file_s, "read": _reading(plan, c), "hash": _hashing(plan, c)}
        return f"scan: {max(parts, key=lambda part: parts[part])}"
    return max(_LEADING[longest], key=lambda stage: stages[stage])


def fitted(plan: Plan, measured_s: Mapping[str, float], constants: Constants | None = None) -> Constants:
    """Return the constants with which the model gives the measured seconds of each phase of a run without cards.

    Parameters
    ----------
    plan
        The run that was measured.
    measured_s
        Seconds of some of the phases `scan`, `embed`, `reduce`, `sweep` and `fit` (`cluster` and `score` together).
        What is not there keeps its constants.

    Raises
    ------
    ValueError
        When a phase is not known, the run was on cards, or `embed` took less than the start of its workers.
    """
    c = constants or Constants()
    unknown = set(measured_s) - set(PHASES)
    if unknown or plan.card is not None:
        raise ValueError(f"give seconds of {', '.join(PHASES)} of a run without cards; found {sorted(unknown)}")
    predicted = phase_seconds(plan, c)
    fixed = c.start_s + c.shard_s * math.ceil(plan.n_shards / plan.workers)
    for phase, seconds in measured_s.items():
        less = fixed if phase == "embed" else 0.0
        if seconds <= less:
            raise ValueError(f"{phase} took {seconds:.1f} s, less than the {less:.1f} s until its workers have started")
        factor = (seconds - less) / (predicted[phase] - less)
        c = replace(c, **{name: getattr(c, name) * factor for name in _CONSTANTS_OF[phase]})
        if phase == "scan":
            c = replace(c, hash_bytes_a_core_s=c.hash_bytes_a_core_s / factor)
    return c


_CONSTANTS_OF = {
    "scan": ("driver_file_s", "scan_core_s"),
    "embed": ("decode_factor", "network_core_s", "store_core_s", "lookup_s"),
    "reduce": ("covariance_s", "covariance_core_s"),
    "sweep": ("sweep_sample_s", "sweep_row_s"),
    "fit": ("fit_row_s", "score_sample_s"),
}


def driver_bytes(n: int) -> float:
    """Return the memory that grows on the driver: 110 bytes for each file of the manifest, and n x 32 float32."""
    return n * (110 + 4 * _N_COLUMNS)


def cores_to_feed(card: Card, picture: Picture, constants: Constants | None = None) -> float:
    """Return how many cores decode as many pictures a second as a card takes."""
    c = constants or Constants()
    return c.card_share * card.flops / NETWORK_FLOPS * picture.decode_core_s


def duration(seconds: float) -> str:
    """Return seconds in words, to two digits."""
    for name, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {name}"
    return f"{seconds:.0f} s"


def tables(picture: str, cores_a_card: float) -> str:
    """Return the tables of docs/scale.md, in Markdown."""
    kind = PICTURES[picture]
    slow, fast = Constants(), on_file_system(20e9)
    parts = [
        _times("A100", 2, kind, cores_a_card, slow),
        _times("A100", 20, kind, cores_a_card, fast),
        _times("H100", 20, kind, cores_a_card, fast),
        _stages(kind, cores_a_card, slow),
    ]
    on_cores = [
        [f"{n:,}", *(duration(total_seconds(Plan(n, w, 16, picture=kind), slow)) for w in _COUNTS)] for n in _SIZES[:3]
    ]
    parts.append(_table(["pictures, CPUs", *(f"{w} x 16 cores" for w in _COUNTS)], on_cores))
    feed = [[name, *(f"{cores_to_feed(card, one):.0f}" for one in PICTURES.values())] for name, card in CARDS.items()]
    parts.append(_table(["cores for one card", *PICTURES], feed))
    driver = [[f"{n:,}", *(f"{size / 1e9:.2f} GB" for size in (110 * n, 128 * n, driver_bytes(n)))] for n in _SIZES]
    parts.append(_table(["pictures", "manifest", "space", "both, on the driver"], driver))
    return "\n\n".join(parts)


_SIZES, _COUNTS = [10**power for power in range(5, 10)], (1, 4, 8, 16, 64)


def on_file_system(bytes_s: float, constants: Constants | None = None) -> Constants:
    """Return the constants for a shared file system of this speed, which opens 10,000 files a second for each GB/s."""
    return replace(constants or Constants(), file_system_bytes_s=bytes_s, file_system_files_s=bytes_s / 1e5)


def _times(card: str, gb_s: int, picture: Picture, cores: float, constants: Constants) -> str:
    rows = []
    for n in _SIZES:
        plans = [Plan(n, workers, cores, CARDS[card], picture) for workers in _COUNTS]
        rows.append(
            [f"{n:,}", *(f"{duration(total_seconds(one, constants))}, {bottleneck(one, constants)}" for one in plans)]
        )
    return _table([f"{card}, {gb_s} GB/s", *map(_cards, _COUNTS)], rows)


def _stages(picture: Picture, cores: float, constants: Constants) -> str:
    rows = []
    for n in _SIZES:
        seconds = stage_seconds(Plan(n, 8, cores, CARDS["A100"], picture), constants)
        rows.append([f"{n:,}", *(duration(seconds[stage]) for stage in STAGES)])
    return _table(["8 A100, 2 GB/s", *STAGES], rows)


def _cards(n: int) -> str:
    return f"{n} card" if n == 1 else f"{n} cards"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (titles, *rows)]
    return "\n".join([lines[0], "|---" * len(titles) + "|", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--picture", choices=PICTURES, default="1MP", help="kind of picture (default: 1MP)")
    parser.add_argument("--cores-a-card", type=float, default=16, help="cores of the host for each card (default: 16)")
    arguments = parser.parse_args()
    print(tables(arguments.picture, arguments.cores_a_card))


if __name__ == "__main__":
    main()
