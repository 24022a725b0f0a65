"""What is kept between runs: embeddings and scans, on disk."""
