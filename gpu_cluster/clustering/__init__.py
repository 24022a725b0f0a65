"""Turns arrays into clusters and scores. This module must not know what is in a manifest, a store, a picture or a
network."""
