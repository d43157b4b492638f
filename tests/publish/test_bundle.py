"""A bundle is a stranger's file: bounded, and refused where it leaves something open, even if its signature holds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.errors import CaptureError
from converter.publish.bundle import bundle_beside, hash_folder
from converter.publish.signature import Trust
from tests.support.signing import Pair, refused, sign_statement, signed

WRONG_STATEMENTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "it ignores the weights": (
        lambda s: s["predicate"]["serialization"]["ignore_paths"].append("model.safetensors"),
        "model.sig: it leaves out model.safetensors, which is not accepted: every file is to be signed",
    ),
    "it ignores a folder": (
        lambda s: s["predicate"]["serialization"]["ignore_paths"].append("../model"), "it leaves out ../model"
    ),
    "it ignores everything": (
        lambda s: s["predicate"]["serialization"].update(ignore_paths=["."]), "it leaves out ., "
    ),
    "ignored paths are no list": (
        lambda s: s["predicate"]["serialization"].update(ignore_paths="vocab.txt"), "no 'ignore_paths' as it should"
    ),
    "a file twice": (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "no one SHA-256"),
    "a file elsewhere": (lambda s: s["predicate"]["resources"][0].update(name="../x"), "not the name of a file in a"),
    "an absolute file": (lambda s: s["predicate"]["resources"][0].update(name="/etc/passwd"), "not the name of a file"),
    "another spelling": (lambda s: s["predicate"]["resources"][0].update(name="./x"), "not the name of a file in a"),
    "no files": (lambda s: s["predicate"].update(resources=[]), "it names 0 files"),
    "too many": (lambda s: s["predicate"].update(resources=[{"name": "x"}] * 20_000), "it names 20000 files"),
    "another hash": (lambda s: s["predicate"]["serialization"].update(hash_type="md5"), "not over whole files by SHA"),
    "shards": (lambda s: s["predicate"]["serialization"].update(method="shards"), "not over whole files by SHA-256"),
    "another statement": (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "it states https://slsa"),
    "its experimental form": (
        lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"), "expected https://model_signing/sig"
    ),
    "a list": (lambda s: s.update(predicate=[]), "it has no 'predicate' as it should be"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_STATEMENTS)
def test_a_statement_that_is_signed_and_leaves_something_open_is_refused(what: str, keys: Pair, model: Path) -> None:
    """By the signer's own key, over exactly these bytes: the signature itself would hold."""
    change, expected = WRONG_STATEMENTS[what]
    signed(model, keys.signer)
    with pytest.raises(CaptureError, match=r"model\.sig: ") as caught:
        sign_statement(model / "model.sig", keys.key, change)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_statement_that_names_too_little_is_refused(keys: Pair, model: Path) -> None:
    signed(model, keys.signer)
    sign_statement(model / "model.sig", keys.key, lambda s: s["predicate"]["resources"].pop(3))
    assert refused(model, Trust(key=keys.public)).endswith(": not signed")


def test_folders_in_folders_end(model: Path) -> None:
    """Deeper than Python calls itself."""
    inside = os.open(model, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=inside)
        deeper = os.open("d", os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = deeper
    os.close(inside)
    try:
        assert "model.safetensors" in hash_folder(model)[0]
    finally:
        subprocess.run(["rm", "-r", model / "d"], check=True)  # pytest would call itself, too


def test_a_folder_that_cannot_be_listed_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "closed").mkdir()
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)  # whoever runs the tests may be allowed everything
    with pytest.raises(CaptureError, match=r"closed: cannot be read: Permission denied\. Check the path\."):
        hash_folder(model)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "Expecting value"),
    "HTML": (b"<!doctype html>", "Expecting value"),
    "no object": (b"[]", "it has no 'verificationMaterial' as it should be"),
    "deep": (b'{"a":' * 90_000 + b"1" + b"}" * 90_000, "nested too deeply"),
    "many values": (b"[" + b"1," * 400_000 + b"1]", "more than 300000 commas"),
    "a name twice": (b'{"verificationMaterial": {}, "verificationMaterial": {}}', "is there twice"),
    "no hash of the key": (b'{"verificationMaterial": {"publicKey": {}}}', "as model-signing before 1.1 did not"),
    "a type": (b'{"verificationMaterial": {"publicKey": {"hint": 5}}}', "it has no 'hint' as it should be"),
    "two ways": (b'{"verificationMaterial": {"publicKey": {}, "certificate": {}}}', "not say in one way with what"),
    "no certificates": (b'{"verificationMaterial": {"x509CertificateChain": {"certificates": []}}}', "it has 0 certif"),
    "no base64": (b'{"verificationMaterial": {"certificate": {"rawBytes": "\\u00e9"}}}', "is not base64"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_bundle_is_told_in_a_sentence(what: str, model: Path) -> None:
    content, expected = HOSTILE[what]
    (model / "model.sig").write_bytes(content)
    with pytest.raises(CaptureError) as caught:
        bundle_beside(model)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_bundle_of_a_gigabyte_is_not_read(model: Path) -> None:
    with (model / "model.sig").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(CaptureError, match="is no signature: it is larger than 16 MiB"):
        bundle_beside(model)


def test_a_bundle_that_is_no_file_is_not_waited_for(model: Path) -> None:
    os.mkfifo(model / "model.sig")
    with pytest.raises(CaptureError, match="is no signature: it is not a file"):
        bundle_beside(model)
