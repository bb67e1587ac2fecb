"""`python -m retroln.cli` is `retroln`."""

from retroln.cli import main

main()
