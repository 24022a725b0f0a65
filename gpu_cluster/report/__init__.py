"""Turns results into the files of a run folder that people look at: tables, plots, the page."""
