"""Says which embeddings the store holds that a job cannot use, because they were made in another way.

Input: the store, the key of a job's embeddings, and the contents that the job is about to embed. This module must not
know how anything is embedded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_cluster.config import EARLIER_DECODING, EmbedConfig
from gpu_cluster.embedding.engines import ENGINES, Engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.events import Observer
from gpu_cluster.store.embeddings import EmbeddingShards
from gpu_cluster.store.store import Store
from gpu_cluster.words import count


def tell_of_others(
    store: Store,
    key: Mapping[str, Any],
    hashes: Sequence[str],
    engine: Engine,
    observer: Observer,
    *,
    may_choose: bool,
    beside: Sequence[Engine] = (),
) -> None:
    """Report the embeddings of these contents that the store holds under a key with another engine or decoding.

    `beside` are the engines of all parts that are computed together: an option holds for all of them.

    Raises
    ------
    StoreError
        When the store cannot be read.
    """
    others = store.embeddings_but_for(key, ("engine", "decode"))
    held = [
        (_option(theirs, key, engine, beside) if may_choose else None, shards.count(hashes), theirs)
        for theirs, shards in others
    ]
    # Those that an option lets the job use come first, then those of the most pictures.
    option, n, theirs = max(held, key=lambda one: (one[1] > 0 and one[0] is not None, one[1]), default=(None, 0, key))
    if not n:
        return
    names = {"engine": "the engine", "decode": "version of decoding"}
    differs = [name for name in names if theirs[name] != key[name]]
    held_words = " and ".join(f"{names[name]} {theirs[name]}" for name in differs)
    ours = " and ".join(f"{names[name]} {key[name]}" for name in differs)
    # Every content is one picture here: copies are embedded once.
    observer.notice(
        f"The store holds the {'embedding' if n == 1 else 'embeddings'} of {count(n, 'picture')} of this job by "
        f"{held_words}; this job has {ours}, and the two do not mix: "
        + ("they are computed again" if option is None else f"use {option} to use them, or they are computed again")
    )


def tell_of_unconverted(shards: EmbeddingShards, hashes: Sequence[str], observer: Observer) -> None:
    """Report the embeddings of contents, to which something is done now, that were made when nothing was done to them.

    Raises
    ------
    StoreError
        When the store cannot be read.
    """
    n = shards.count(hashes) if hashes else 0
    if n:
        observer.notice(
            f"The store holds the {'embedding' if n == 1 else 'embeddings'} of {count(n, 'picture')} of this job by an "
            "earlier version, which applied no profile and took no preview of camera RAW; they are computed again"
        )


def _option(theirs: Mapping[str, Any], key: Mapping[str, Any], engine: Engine, beside: Sequence[Engine]) -> str | None:
    """Return the options with which the job would use the embeddings of another key; None if there are none."""
    extractors = [_extractor(part) for part in (engine, *beside)]
    usable = [ENGINES[name] for name in engine.backend.engines if not ENGINES[name].installation().remedy]
    able = [one for one in usable if not any(one.why_not(extractor) for extractor in extractors)]
    identities = {one.name: one(engine.backend, extractors[0], engine.config).identity for one in able}
    names = [name for name, identity in identities.items() if identity == theirs["engine"]]
    if not names or theirs["decode"] not in range(EARLIER_DECODING, EmbedConfig().decoding + 1):
        return None
    options = [] if names[0] == engine.name else [f"--engine {names[0]}"]
    if theirs["decode"] != key["decode"]:
        options.append(f"--decoding {theirs['decode']}")
    return " ".join(options)


def _extractor(engine: Engine) -> Extractor:
    assert isinstance(engine.extractor, Extractor), "the store keeps the parts of joined features apart"
    return engine.extractor
