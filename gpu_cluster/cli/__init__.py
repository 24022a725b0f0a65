"""The command line: options in, jobs out; the only room that prints."""
