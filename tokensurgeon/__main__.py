"""Run the command line with ``python -m tokensurgeon``."""

from tokensurgeon.cli.app import main

if __name__ == "__main__":
    main()
