"""DiffMAViL: pretraining of audio-video masked autoencoders."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("diffmavil")
except PackageNotFoundError:  # run from source, not installed
    __version__ = "0.1.0"
