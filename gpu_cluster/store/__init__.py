"""The store: keeps embeddings and scans on disk between runs."""
