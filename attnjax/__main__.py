"""python -m attnjax papers | show NAME | explain NAME | balance | plan | --version."""

import sys

from attnjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
