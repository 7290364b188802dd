"""``python -m mambaad`` is the command line."""

from mambaad.cli import main

main()
