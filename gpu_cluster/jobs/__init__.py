"""The jobs, one a file: each is a command of the command line and a function of the Python API."""
