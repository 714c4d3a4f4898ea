"""The code of docs/decoding.md runs, one block after the other."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "decoding.md"


def test_the_blocks_run_one_after_the_other():
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL))
    names = {}
    exec(compile(code, str(DOCS), "exec"), names)
    assert names["text"].shape == (2, 12)
