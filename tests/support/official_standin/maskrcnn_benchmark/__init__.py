"""A stand-in for the official package: its API, module names and kinds of outputs, the numbers of the small GLIP.

For testing scripts/capture_official.py where the official package cannot be had. Nothing here is copied from it.
"""
