"""Families are looked for wherever Python looks for packages."""

from __future__ import annotations

import sys

import pytest

from converter.mapping.folders import installed_families


def test_a_place_that_cannot_be_looked_at_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/" + "a" * 300, *sys.path])  # too long for a name: an error of the system
    assert installed_families.__wrapped__() == ()
