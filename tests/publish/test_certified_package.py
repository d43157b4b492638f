"""A certificate is of the package: what decides results beside the weights is compared, and what differs is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from converter.cli import main
from converter.errors import CaptureError
from converter.glip.family import FAMILY
from converter.glip.model.config import Rules
from converter.parity.evidence import read_evidence
from tests.support.bert_vocabulary import small_vocabulary
from tests.support.certifying import verify
from tests.support.hub.server import HubServer
from tests.support.packaging import edit, packaged, run
from tests.support.publishing import Clock, go
from tests.support.small_glip import loading


@pytest.fixture
def package(conversions: Path) -> Path:
    return packaged(conversions)


def config(folder: Path) -> Path:
    return folder / "config.json"


def exchange_words(folder: Path) -> None:
    """Two words of the vocabulary, in every file that has it."""
    for path in (folder / "vocab.txt", folder / "tokenizer.json"):
        text = path.read_text(encoding="utf-8")
        words = {"vocab.txt": ("\ndog\n", "\ncat\n"), "tokenizer.json": ('"dog"', '"cat"')}[path.name]
        text = text.replace(words[0], "\0").replace(words[1], words[0]).replace("\0", words[1])
        path.write_text(text, encoding="utf-8")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "the mean": (
        lambda f: edit(config(f), lambda c: c["preprocessing"].update(mean=[123.675, 116.28, 103.53])),
        "preprocessing.mean: [123.675, 116.28, 103.53] here, [103.53, 116.28, 123.675] certified",
    ),
    "the deviation": (
        lambda f: edit(config(f), lambda c: c["preprocessing"].update(std=[1.0, 1.0, 1.0])),
        "preprocessing.std: [1.0, 1.0, 1.0] here, [57.375, 57.12, 58.395] certified",
    ),
    "the size": (
        lambda f: edit(config(f), lambda c: c["preprocessing"].update(shorter_side=640)),
        "preprocessing.shorter_side: 640 here, 800 certified",
    ),
    "the order of channels": (
        lambda f: edit(config(f), lambda c: c["preprocessing"].update(channel_order="rgb")),
        'preprocessing.channel_order: "rgb" here, "bgr" certified',
    ),
    "the anchors": (
        lambda f: edit(config(f), lambda c: c["config"].update(anchor_sizes=[32, 64, 128, 256, 512])),
        "config.anchor_sizes: [32, 64, 128, 256, 512] here, [64, 128, 256, 512, 1024] certified",
    ),
    "no preprocessing": (
        lambda f: edit(config(f), lambda c: c.update(preprocessing=None)), "preprocessing: null here, nothing certified"
    ),
    "detection parameters": (
        lambda f: edit(config(f), lambda c: c.update(detection={"nms_threshold": 0.9})),
        "detection.nms_threshold: the configuration states 0.9, which nothing reads; 0.6 is used",
    ),
    "what is said of the vocabulary": (
        lambda f: edit(config(f), lambda c: c["vocabulary"].update(bert_base_uncased=True)),
        "vocabulary.bert_base_uncased: true here, false certified",
    ),
    "the origin": (
        lambda f: edit(config(f), lambda c: c["provenance"]["source"].update(sha256="c" * 64)), "provenance.source."
    ),
    "two words": (exchange_words, "vocab.txt: other content than certified"),
    "no vocabulary": (lambda f: (f / "vocab.txt").unlink(), "vocab.txt: certified, and not here"),
    "another tokenizer": (
        lambda f: edit(f / "tokenizer_config.json", lambda c: c.update(do_lower_case=False)),
        "tokenizer_config.json: other content than certified",
    ),
    "more words": (
        lambda f: (f / "added_tokens.json").write_text("{}"), "added_tokens.json: here, and not certified"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_differs_is_named_and_not_published(what: str, package: Path, hub: HubServer, clock: Clock) -> None:
    change, expected = CHANGES[what]
    change(package)
    result = CliRunner().invoke(main, ["verify", str(package)])
    assert (result.exit_code, expected in result.stdout) == (1, True), result.output
    with pytest.raises(CaptureError, match="is not what was certified") as caught:
        go(package, clock)
    assert expected in str(caught.value)
    assert hub.requests == []


def test_other_detection_parameters_are_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.glip.model.config.RULES", Rules(nms_threshold=0.5))
    result = verify(package, loading(package))
    assert (result.passed, result.problems) == (False, ["detection.nms_threshold: 0.5 here, 0.6 certified"])


def test_a_ledger_of_other_weights_is_named(package: Path) -> None:
    edit(package / "conversion.json", lambda c: c.update(sha256="0" * 64))
    result = verify(package, loading(package))
    assert result.passed is False
    assert (
        f"of weights with sha256 {'0' * 64} here, {read_evidence(package / 'parity.json').sha256} certified"
        in (result.problems[0])
    )


def test_a_package_has_what_was_certified_and_what_was_added(conversions: Path, package: Path) -> None:
    before, after = read_evidence(conversions / "glip.parity.json").setup, read_evidence(package / "parity.json").setup
    added = {"vocabulary", "provenance", "model_name"}
    assert after.settings.keys() - before.settings.keys() == added
    assert all(after.settings[key] == value for key, value in before.settings.items())
    assert before.files == {}
    assert after.files.keys() == {"vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert verify(package, loading(package)).passed


def test_every_file_that_is_published_beside_weights_is_looked_at(conversions: Path) -> None:
    companions = FAMILY.companions(conversions / "glip", {"vocab_size": 50}, conversions / "vocab.txt")
    assert companions.files.keys() <= set(FAMILY.files)


def test_a_package_can_be_packaged_again(package: Path, conversions: Path) -> None:
    again = conversions / "again"
    assert run(conversions, "out", again, "--repo-id", "somebody/small").exit_code == 0
    assert verify(again, loading(again)).passed


def test_another_vocabulary_than_the_certified_one_is_refused(package: Path, conversions: Path) -> None:
    words = (conversions / "vocab.txt").read_text().replace("\ndog\n", "\0").replace("\ncat\n", "\ndog\n")
    small_vocabulary(conversions).write_text(words.replace("\0", "\ncat\n"))
    result = run(conversions, "out", conversions / "again")
    assert (result.exit_code, "vocab.txt: other content than certified" in result.stderr) == (8, True), result.output
    assert not (conversions / "again").exists()


def test_a_conversion_that_was_changed_is_not_packaged(conversions: Path) -> None:
    edit(conversions / "glip" / "config.json", lambda c: c["config"].update(anchor_strides=[4, 8, 16, 32, 64]))
    result = run(conversions, "glip", conversions / "out", "--json")
    assert result.exit_code == 8
    assert "config.anchor_strides: [4, 8, 16, 32, 64] here" in json.loads(result.stdout)["error"]["message"]


def test_the_folders_own_preprocessing_is_kept(conversions: Path) -> None:
    (conversions / "glip" / "parity.json").unlink()
    settings = {**FAMILY.settings()["preprocessing"], "shorter_side": 96}
    edit(conversions / "glip" / "config.json", lambda c: c.update(preprocessing=settings))
    assert json.loads((packaged(conversions, "glip") / "config.json").read_text())["preprocessing"] == settings
