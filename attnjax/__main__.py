"""python -m attnjax find | papers | show | explain | draw | view | ... | --version."""

import sys


def run() -> int:
    """The command line; says which extra it needs where that is not installed."""
    try:
        from attnjax.cli import main
    except ModuleNotFoundError as error:
        print(f'attnjax: {error}; pip install "attnjax[lab]"', file=sys.stderr)
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(run())
