"""The folder to publish: weights, configuration, vocabulary, evidence, and a card that says what all that is."""

from converter.package.folder import Package, make_package, write_package

__all__ = ["Package", "make_package", "write_package"]
