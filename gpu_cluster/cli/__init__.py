"""The command line: reads options and starts jobs. This is the only package that prints."""
