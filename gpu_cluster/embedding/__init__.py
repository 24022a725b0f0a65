"""Turns pictures into embeddings: the features that describe a picture, and the engines that run the networks."""
