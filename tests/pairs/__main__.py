"""`python -m pairs` writes docs/pairs.md."""

from pairs.page import main

main()
