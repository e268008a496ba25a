"""Run the command line: `python -m posegen`."""

from posegen.cli import main

main()
