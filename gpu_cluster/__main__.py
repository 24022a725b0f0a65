"""Lets `python -m gpu_cluster` do what the command `gpu-cluster` does."""

from gpu_cluster.cli.main import main

if __name__ == "__main__":
    main()
