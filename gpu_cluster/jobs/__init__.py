"""The jobs, one module for each. Most are both a command and a Python function; `embed` is a Python function only."""
