"""`python -m converter`."""

from .cli import main

main(prog_name="converter")
