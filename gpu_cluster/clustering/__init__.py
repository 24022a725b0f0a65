"""Turns arrays into clusters and scores. Must not know what is in a manifest, a store, a picture or a network."""
