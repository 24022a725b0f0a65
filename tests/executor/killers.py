"""A tiny engine and a source that end their process at one picture, as a decoder or a file system with a fault may."""

from __future__ import annotations

import os
from dataclasses import dataclass

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig
from gpu_cluster.embedding.engines import Engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.embedding.tasks import EngineRecipe
from gpu_cluster.images.source import LocalFiles
from tests.embedding.mean_colours import MeanColours


class Killer(MeanColours):
    """Embeds mean colours, and ends the process before the batch that has one content."""

    content = ""

    def squares(self, pictures, configs):
        if any(picture.facts.content_hash == self.content for picture in pictures):
            os._exit(11)
        yield from super().squares(pictures, configs)


@dataclass(frozen=True)
class KillerRecipe(EngineRecipe):
    """Makes the engine; without a content it harms nobody."""

    content: str = ""

    def make(self) -> Engine:
        extractor = Extractor({"features": "mean colours"}, 3, lambda _precision: lambda pixels: pixels)
        engine = Killer(CpuBackend(), extractor, EmbedConfig(batch_size=4))
        engine.content = self.content
        return engine


class KillingFiles(LocalFiles):
    """Files of which one ends the process that opens it."""

    def open(self, location, facts=None):
        if location == "003.png":
            os._exit(11)
        return super().open(location, facts)
