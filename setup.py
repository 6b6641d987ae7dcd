"""Everything lives in pyproject.toml; native extensions are added here when csrc/ has any."""

from setuptools import setup

setup()
