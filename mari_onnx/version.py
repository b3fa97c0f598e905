"""The version of this package, which outputs and reports carry."""

__version__ = "0.1.0"
