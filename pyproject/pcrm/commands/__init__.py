"""The commands of `pcrm`: a module each, with a `main(argv)` that returns the exit status.

Each imports what it needs when it runs, and raises ValueError, OSError or ModuleNotFoundError for
what its user can mend: `pcrm.cli` prints these as one line.
"""
