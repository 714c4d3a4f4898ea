"""Whether the kernels are as they were when all of their tests passed.

    python -m tests.kernels.stamp    # notes that they passed; `make kernels` does, after them

The note is a hash of what the tests in the interpreter depend on.  A default run takes a sample of
those while the hash is the same, and all of them once it is another.
"""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTE = Path(__file__).with_name("passed.txt")
SOURCES = (
    "kernels/*.py",
    "kernels/flash/*.py",
    "kernels/linear/*.py",
    "attnjax/core/pairwise/triton.py",
    "attnjax/core/pairwise/fused.py",
    "attnjax/core/recurrence/triton.py",
    "tests/kernels/*.py",
)
APART = {
    "bench.py", "forms.py", "rivals.py", "smoke.py", "test_bench.py", "test_smoke.py",
    "conftest.py", "stamp.py",
}  # fmt: skip


def digest():
    """A hash of the sources, by name and content."""
    files = {f for pattern in SOURCES for f in ROOT.glob(pattern) if f.name not in APART}
    total = hashlib.sha256()
    for file in sorted(files):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(ROOT)} {content}\n".encode())
    return total.hexdigest()


def passed():
    """Whether all tests passed with the sources as they are."""
    return NOTE.exists() and NOTE.read_text().strip() == digest()


if __name__ == "__main__":
    NOTE.write_text(digest() + "\n")
