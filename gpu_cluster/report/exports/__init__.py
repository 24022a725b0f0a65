"""The formats in which the results of a finished run leave for other tools: one module for each."""
