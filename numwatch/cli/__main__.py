"""`python -m numwatch.cli`."""

from numwatch.cli.app import main

main()
