"""Arrays -> clusters and scores. Nothing here knows a manifest, a store, a picture or a network."""
