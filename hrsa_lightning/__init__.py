"""Fine-tune decoder LLMs into embedding models and watch their representations while they train."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("hrsa-lightning")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
