"""`python -m trioreq.cli` is `trioreq-client`."""

from . import main

main()
