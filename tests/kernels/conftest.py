"""Which of the tests that Triton's interpreter runs, a run takes."""

import os
from pathlib import Path

from tests.kernels import stamp


def pytest_collection_modifyitems(config, items):
    """All marked `interpreter` where kernels changed, or -m or ATTNJAX_LAWS=all asks for them."""
    asked = "interpreter" in config.option.markexpr or os.environ.get("ATTNJAX_LAWS") == "all"
    if asked or not stamp.passed():
        return
    here = Path(__file__).parent
    left_out = [i for i in items if here in i.path.parents and i.get_closest_marker("interpreter")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
