"""The package's version, for modules that must not import the package's root."""

from importlib.metadata import version

__version__ = version("pcrm")
