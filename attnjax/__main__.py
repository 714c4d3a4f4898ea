"""python -m attnjax find | papers | show | explain | draw | view | ... | --version."""

import sys

from attnjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
