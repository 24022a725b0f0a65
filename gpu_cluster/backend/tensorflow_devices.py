"""Sets TensorFlow's devices up, once in a process, for work on the CPU and on the card alike.

TensorFlow fixes its devices at its first operation. If a job on the CPU hid the cards, no later job of the same process
could use them. So both backends set the devices up in the same way, and place their work with `tf.device`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

#: TensorFlow's names of the devices.
CPU, CARD = "/CPU:0", "/GPU:0"

_NO_CARD = ("", "-1", "NoDevFiles")

# What `show_one_card` has set CUDA_VISIBLE_DEVICES to in this process, and what it was before.
_narrowed: tuple[str, str | None] | None = None


def driver() -> ctypes.CDLL | None:
    """Return the library of NVIDIA's driver, not started, or None if this machine has none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def no_card_is_visible() -> bool:
    """Return whether CUDA_VISIBLE_DEVICES hides every card."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return value is not None and value.split(",")[0].strip() in _NO_CARD


def allowed_cards() -> str | None:
    """Return CUDA_VISIBLE_DEVICES as it was before `show_one_card` changed it; None if it was not set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _narrowed[1] if _narrowed is not None and _narrowed[0] == value else value


def show_one_card() -> bool:
    """Let this process see only the first visible card; return False if it is too late for that.

    TensorFlow makes a context of some hundred megabytes on every card that it sees. Hiding cards with
    `tf.config.set_visible_devices` would give DLPack wrong device numbers (tensorflow#47866). CUDA reads the variable
    when it starts, so this must come before a library that starts it is loaded.
    """
    global _narrowed  # noqa: PLW0603 - the environment is the process's too
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if value is None else value.split(",")[0].strip()
    if value == first or no_card_is_visible():
        return True
    if _loaded():
        return False
    _narrowed = (first, value)
    os.environ["CUDA_VISIBLE_DEVICES"] = first
    return True


def _loaded() -> bool:
    """Return whether this process has loaded a library that may have started CUDA."""
    return bool({"tensorflow", "cupy", "torch"} & set(sys.modules))


def prepare() -> str | None:
    """Start TensorFlow so that it shares the cards; return why it cannot share them, or None.

    By default TensorFlow takes all free memory of every card that it sees. This can be changed only before its first
    operation. If a card cannot be started, for example because its memory is full, TensorFlow starts without cards.
    """
    if driver() is not None:
        show_one_card()
    if "keras" not in sys.modules:
        # TensorFlow loads Keras, which would otherwise compute with what the user's settings name.
        os.environ["KERAS_BACKEND"] = "tensorflow"
    # TensorFlow raises its errors as exceptions as well; its log lines are about kernels that it does not need.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _native_stderr_kept():
        import tensorflow as tf

        reason = None
        for card in tf.config.list_physical_devices("GPU"):
            try:
                # Setting what is set already is no error, even after the first operation.
                tf.config.experimental.set_memory_growth(card, True)
            except (RuntimeError, ValueError):
                # A RuntimeError after the first operation, a ValueError if the program has parted the card.
                reason = (
                    "this process had set TensorFlow up before, so that it does not share the memory of the card; set "
                    "TF_FORCE_GPU_ALLOW_GROWTH=true before it starts, or use a process of its own"
                )
        try:
            _first_operation()
        except tf.errors.OpError as error:
            if not tf.config.list_physical_devices("GPU"):
                raise
            tf.config.set_visible_devices([], "GPU")
            _first_operation()
            return f"TensorFlow cannot start the card: {' '.join(str(error).split())}"
    return None if os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH") == "true" else reason


def why_no_card() -> str | None:
    """Return why TensorFlow cannot compute on the card, or None if it can; does one small operation there."""
    if reason := prepare():
        return reason
    import tensorflow as tf

    if not tf.config.list_logical_devices("GPU"):
        return "TensorFlow sees no card"
    try:
        device = _operation_on_the_card()
    except tf.errors.OpError as error:
        return f"TensorFlow cannot compute on the card: {' '.join(str(error).split())}"
    return None if "GPU" in device else f"TensorFlow computes on {device} instead"


def _first_operation() -> None:
    import tensorflow as tf

    with tf.device(CPU):
        tf.zeros(()).numpy()


def _operation_on_the_card() -> str:
    """Do a small matrix product on the card, and return the device on which TensorFlow did it."""
    import tensorflow as tf

    with tf.device(CARD):
        found = tf.linalg.matmul(tf.ones((2, 2)), tf.ones((2, 2)))
    found.numpy()
    return str(found.device)


@contextmanager
def _native_stderr_kept() -> Iterator[None]:
    """Hold back what C++ code writes to file descriptor 2, and show it only if the block fails.

    TensorFlow 2.21 logs lines on import and at its first operation, before its log level takes effect.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
