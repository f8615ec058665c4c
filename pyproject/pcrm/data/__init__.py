"""Preference data: what a row means, files of rows, and outputs that survive a kill."""
