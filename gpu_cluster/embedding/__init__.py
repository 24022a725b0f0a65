"""Pictures -> embeddings: what describes a picture, and what runs the network."""
