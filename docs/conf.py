"""The site that `make docs` builds: the pages of this folder, a gallery and a reference."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import attnjax  # noqa: E402

project = "attnjax"
author = "The attnjax developers"
release = attnjax.__version__
extensions = ["myst_parser", "sphinx_design"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",  # headings of a report begin where it likes
    "toc.not_included",  # reports of claims, which their table links to
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"attnjax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]


def generate(app):
    import pages

    pages.write(Path(__file__).parent, pictures=os.environ.get("PICTURES", "1") != "0")


def setup(app):
    app.connect("builder-inited", generate)
