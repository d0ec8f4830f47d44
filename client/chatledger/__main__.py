"""``python -m chatledger`` is the program ``chatledger``."""

from chatledger.cli import main

main()
