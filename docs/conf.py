"""How Sphinx builds the site; `make docs` treats its warnings as errors."""

from numwatch import __version__

project = "numwatch"
author = "the numwatch developers"
version = release = __version__

extensions = [
    "myst_parser",  # pages are Markdown, read on a code host too
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings are Google's style
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"numwatch {release}"
exclude_patterns = ["_build"]
myst_heading_anchors = 3

default_role = "code"  # docstrings quote names as Markdown does
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Warns", "Raises")]
