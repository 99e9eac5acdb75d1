"""Build entry point; the package itself is declared in pyproject.toml.

What needs code to declare, such as an extension that is built beside the installed PyTorch, belongs
here and nothing else does.
"""

from setuptools import setup

setup()
