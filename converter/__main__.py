"""`python -m converter`."""

from converter.cli import converter_main

converter_main()
