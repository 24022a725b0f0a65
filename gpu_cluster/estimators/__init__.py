"""The habit of scikit-learn: pictures to embeddings as a transformer, embeddings to clusters as a clusterer.

Both are thin: the embedders run the job `embed`, and the clusterer runs the steps of `clustering` on arrays. Their
parameters are the options of `run` and have the same defaults; where scikit-learn has another name for one, it has that
name here: `n_clusters` is `k`, and `random_state` is `seed`. This room must not know run folders.
"""

from gpu_cluster.estimators.clusterer import ImageClusterer
from gpu_cluster.estimators.embedders import ImageEmbedder, VGG16Embedder

__all__ = ["ImageClusterer", "ImageEmbedder", "VGG16Embedder"]
