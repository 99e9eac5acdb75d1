"""Sphinx's configuration of the site: `make docs` builds it, without the network, into site/."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # fsdino of this checkout; the extension beside this

from fsdino.version import __version__  # noqa: E402

project = "fsdino"
author = "fsdino developers"
copyright = "fsdino developers; Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
# A docstring's single backticks are code.
default_role = "code"
pygments_style, pygments_dark_style = "default", "github-dark"

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence"]

napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
# Unions that have a name keep it.
autodoc_type_aliases = {name: name for name in ("Block", "Flags", "ImageLike", "MaskLike", "Split")}

html_theme = "furo"
html_title = f"fsdino {__version__}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
