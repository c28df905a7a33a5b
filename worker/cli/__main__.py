"""`python -m worker.cli`: the same command, where no script is installed."""

from worker.cli import main

main()
