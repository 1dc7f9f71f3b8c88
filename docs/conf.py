"""How the documentation is built."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "outboard"
author = "the outboard authors"
copyright = author
release = version = version_of("outboard")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.apidoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "capture",
    "commands",
    "declared_tables",
    "layout_table",
    "points_table",
    "profiles_table",
    "suite_table",
]
# Tables that a page includes.
exclude_patterns = ["_build", "reference/measured"]
default_role = "py:obj"
# Two rooms may have a class of the same name; a link then goes to one of them.
suppress_warnings = ["ref.python"]

apidoc_modules = [
    {
        "path": "../src/outboard",
        "destination": "reference/api",
        "exclude_patterns": ["../src/outboard/cli/*"],
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__", "ignore-module-all": True}
python_maximum_signature_line_length = 100

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "outboard"
html_show_copyright = False
html_show_sphinx = False
