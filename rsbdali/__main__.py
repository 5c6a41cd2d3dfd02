"""`python -m rsbdali`, as torchrun wants it."""

from rsbdali.cli import main

main()
