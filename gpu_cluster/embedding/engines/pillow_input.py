"""Reads plain JPEGs and PNGs as batches of their pixels, with Pillow, in threads that decode ahead of the network.

Input: pictures that the scan found usable. Output: float32 pixels (B, side, side, 3), RGB, 0 to 255, upright, with
transparent parts on white, one such array for each config that says how squares are made. Each picture comes with its
position, so that a picture that fails never shifts the others. This module must not know the network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import IntArray
from gpu_cluster.config import PixelsConfig
from gpu_cluster.images import decode, decoders, square
from gpu_cluster.images.source import Picture
from gpu_cluster.images.square import Square


def batches(
    pictures: Sequence[Picture], configs: Sequence[PixelsConfig], *, batch_size: int
) -> Iterator[tuple[IntArray, tuple[npt.NDArray[np.float32], ...]]]:
    """Yield (position (B,) int64, pixels (B, side, side, 3) float32 for each config), in the order of `pictures`.

    One batch, and a picture for each thread, are decoded ahead. Pictures that are not plain (see `images.decoders`) and
    those that cannot be decoded are left out: their positions do not appear.

    Raises
    ------
    MemoryError
        When there is no memory for the next batch.
    """
    facts = [picture.facts_with_scans() for picture in pictures]
    plain = [position for position, one in enumerate(facts) if decoders.is_plain(one)]
    if not plain:
        return
    limits = decoders.current()
    most = max(decoders.bytes_needed(facts[at], square.at_least(config)) for at in plain for config in configs)
    n_threads = limits.n_plain_at_once(most, are_here=all(pictures[position].is_local for position in plain))
    pool = ThreadPoolExecutor(n_threads)
    begun: deque[tuple[int, Future[list[Square] | None]]] = deque()
    left = iter(plain)

    def begin(n_ahead: int) -> None:
        while len(begun) < n_ahead and (position := next(left, None)) is not None:
            begun.append((position, pool.submit(_decoded, pictures[position], configs)))

    try:
        positions: list[int] = []
        squares: list[list[Square]] = []
        begin(batch_size + n_threads)
        while begun:
            position, found = begun.popleft()
            pixels = found.result()
            begin(batch_size + n_threads - len(squares))
            if pixels is not None:
                positions.append(position)
                squares.append(pixels)
            if len(squares) == batch_size or (squares and not begun):
                begin(batch_size + n_threads)
                of_each = tuple(map(np.stack, zip(*squares, strict=True)))
                batch = np.array(positions, dtype=np.int64), of_each
                positions, squares = [], []
                yield batch
    finally:
        # Whoever stops here does not wait for the pictures that are being decoded.
        pool.shutdown(wait=False, cancel_futures=True)


def _decoded(picture: Picture, configs: Sequence[PixelsConfig]) -> list[Square] | None:
    """Return a picture (side, side, 3) as each config wants it, or None if it cannot be decoded here."""
    squares: dict[int, Square] = {}
    try:
        picture = picture.held()
        for at_least, positions in square.shared_decodings(picture.facts, configs):
            with picture.open() as stream:
                decoded = decode.decode(stream, picture.suffix, at_least=at_least, plain=True)
            squares |= {position: square.to_square(decoded, configs[position]) for position in positions}
    # On a broken file Pillow's readers can raise any type of error. Such a picture is decoded once more, in a process
    # of its own, which finds the reason.
    except Exception:  # noqa: BLE001
        return None
    return [squares[position] for position in range(len(configs))]
