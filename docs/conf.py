"""How Sphinx builds the docs: `sphinx-build -n -W docs docs/_build`."""

import ast
import inspect
import sys
from pathlib import Path

import trioreq
import trioreq.testing

project = "trioreq"
author = "the authors of trioreq"
project_copyright = f"2026, {author}"
release = version = trioreq.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `name` in a docstring is a name
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
# Of what `sphinx-build -n` looks up: other projects' names, for which no network is needed, and two
# private ones in public signatures. And the names of parameters.
nitpick_ignore_regex = [
    ("py:.*", r"(collections\.abc|enum|math|os|pathlib|random|time|trio)(\..+)?"),
    ("py:.*", r"(trioreq\._transport\.network\.)?Network|Frames"),
]
nitpick_ignore = [
    ("py:obj", parameter)
    for owner in (trioreq, *(getattr(trioreq, name) for name in trioreq.__all__))
    for function in vars(owner).values()
    if inspect.isfunction(function)
    for parameter in inspect.signature(function).parameters
]

html_theme = "furo"
html_title = f"trioreq {release}"

# The package makes its names look as if defined in trioreq or trioreq.testing; autodoc finds their
# members' docstrings only where they really are.
for _name, _module in list(sys.modules.items()):
    _path = Path(getattr(_module, "__file__", None) or "")
    if not _name.startswith("trioreq.") or _path.suffix != ".py":  # an extension has no source
        continue
    for _node in ast.parse(_path.read_text()).body:
        if isinstance(_node, ast.ClassDef | ast.AsyncFunctionDef | ast.FunctionDef):
            getattr(_module, _node.name).__module__ = _module.__name__


def hide_constructor(_app, what, *_rest):
    """Users make none of the objects but the exceptions."""
    return ("", "") if what == "class" else None


def setup(app):
    app.connect("autodoc-process-signature", hide_constructor)
