"""The release, for the package, the program and the schema."""

__version__ = "0.1.0"
