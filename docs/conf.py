"""How Sphinx builds the docs: `sphinx-build -n -W docs docs/_build`."""

import ast
import inspect
import json
import re
import sys
from pathlib import Path

import trioreq
import trioreq.testing

project = "trioreq"
author = "the authors of trioreq"
project_copyright = f"2026, {author}"
release = version = trioreq.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `name` in a docstring is a name
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# The names that the docs may link to are listed in files, so that the build needs no network. A
# name that is missing there is a warning: add a line.
intersphinx_mapping = {
    "trio": ("https://trio.readthedocs.io/en/stable/", "inventories/trio.txt"),
    "pyzmq": ("https://pyzmq.readthedocs.io/en/stable/", "inventories/pyzmq.txt"),
}

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
# What `sphinx-build -n` does not look up: names of the standard library, two private names in
# public signatures, and the names of parameters.
nitpick_ignore_regex = [
    ("py:.*", r"(collections\.abc|enum|math|os|pathlib|random|time|types)(\..+)?"),
    ("py:.*", r"(trioreq\._transport\.network\.)?Network|Frames"),
    ("py:.*", r"trioreq\._finishing\.FinishingBlock"),
]
nitpick_ignore = [
    ("py:obj", parameter)
    for owner in (trioreq, *(getattr(trioreq, name) for name in trioreq.__all__))
    for function in vars(owner).values()
    if inspect.isfunction(function)
    for parameter in inspect.signature(function).parameters
]

# The words of the issue trackers and manuals. The build fails if the search finds no page for one.
searched_for = [
    "disconnect", "back-pressure", "event loop", "GIL", "invalid", "retry", "access control",
    "timeout", "reconnect", "blocking", "keep-alive", "whitelist", "graceful", "authentication",
    "identity", "load balancer", "cancel", "heartbeat", "memory leak", "thread pool", "asyncio",
]  # fmt: skip

html_theme = "furo"
html_title = f"trioreq {release}"
html_static_path = ["static"]
html_css_files = ["trioreq.css"]

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


def llms_txt(folder):
    """The pages, each with its first sentence, in the order of the index; see llmstxt.org."""
    index = (folder / "index.md").read_text()
    lines = [f"# {project}", "", f"> {first_paragraph(index)}"]
    toctrees = re.findall(r"^```{toctree}\n(.*?)^```$", index, re.DOTALL | re.MULTILINE)
    for toctree in toctrees:
        caption = re.search(r"^:caption: (.*)$", toctree, re.MULTILINE)
        lines += ["", f"## {caption[1]}", ""]
        for name in re.findall(r"^[\w-]+$", toctree, re.MULTILINE):
            text = (folder / f"{name}.md").read_text()
            title = re.search(r"^# (.*)$", text, re.MULTILINE)[1]
            summary = first_paragraph(text).partition(". ")[0].rstrip(".:")
            lines.append(f"- [{title}]({name}.html): {summary}.")
    return "\n".join(lines) + "\n"


def first_paragraph(text):
    """The first paragraph of a page, on one line, with links as plain text."""
    paragraph = re.search(r"^# .*\n\n((?:[^\n]+\n)+)", text, re.MULTILINE)[1]
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", " ".join(paragraph.split()))


def write_llms_txt(app, exception):
    if exception is None and app.builder.name == "html":
        (Path(app.outdir) / "llms.txt").write_text(llms_txt(Path(app.srcdir)))


def check_search(app, exception):
    """Search the index of the built pages, as the page of the search does."""
    from sphinx.errors import ExtensionError  # here, since a test runs this file without Sphinx
    from sphinx.search.en import SearchEnglish

    if exception is not None or app.builder.name != "html":
        return
    script = (Path(app.outdir) / "searchindex.js").read_text()
    index = json.loads(script.removeprefix("Search.setIndex(").removesuffix(")"))
    stem = SearchEnglish({}).stem

    def pages(word):
        found = [index[terms].get(stem(word.lower()), []) for terms in ("terms", "titleterms")]
        return {page for some in found for page in (some if isinstance(some, list) else [some])}

    for words in searched_for:
        if not set.intersection(*map(pages, re.findall(r"\w+", words))):
            raise ExtensionError(f"the search of the pages finds nothing for {words!r}")


def setup(app):
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("build-finished", write_llms_txt)
    app.connect("build-finished", check_search)
