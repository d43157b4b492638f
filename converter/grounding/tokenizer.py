"""BERT's uncased WordPiece (Devlin et al. 2019, arXiv:1810.04805): from text to token ids with character spans.

Only the vocabulary is taken from a file. Everything else is fixed, so that truncation, padding or casing in a
`tokenizer.json` that was made for another model cannot change what a detector reads.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.strict_json import OBJECT_LIMIT, parse_json, read_limited
from converter.display import file_name, plain, quoted
from converter.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
FILES = ("tokenizer.json", "vocab.txt")  # in a folder, the first of these that exists is read
COMPANIONS = (
    *FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)  # that go with weights
SHIPPED = Path(__file__).with_name("bert-base-uncased-vocab.txt")  # NOTICE says whose it is
# of vocab.txt in google-bert/bert-base-uncased on the Hub, at 86b5e0934494bd15c9632b12f734a8a67f723594
BERT_BASE_UNCASED_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A caption in tokens, [CLS] and [SEP] included; `spans`: (start, end) in characters, None for these two."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int] | None, ...]


class Tokenizer:
    """Text in, ids out. `pieces`: the vocabulary in the order of its ids; `origin`: its file, for messages."""

    def __init__(self, pieces: tuple[str, ...], origin: str) -> None:
        self.pieces = pieces
        self.origin = origin
        ids = {piece: number for number, piece in enumerate(pieces)}
        missing = [token for token in SPECIAL.values() if token not in ids]
        if missing:
            raise ModelError(f"{origin}: not a BERT vocabulary: it has no {', '.join(missing)}. Give that of {_NAME}.")
        if len(ids) != len(pieces):
            twice = next(piece for number, piece in enumerate(pieces) if ids[piece] != number)
            raise ModelError(f"{origin}: the piece {quoted(twice, 40)} appears twice. Get the vocabulary again.")
        self._ids = ids

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """From `vocab.txt`, `tokenizer.json` or a folder with one of them. ModelError if it is none of these."""
        if os.path.isdir(path):
            found = [path / name for name in FILES if (path / name).is_file()]
            if not found:
                raise ModelError(
                    f"{file_name(path)}: has no {' and no '.join(FILES)}. Give a vocabulary: --vocab vocab.txt"
                )
            path = found[0]
        text = _read(path)
        pieces = _pieces(path, text) if path.suffix == ".json" else _lines(text)
        return cls(pieces, file_name(path))

    @classmethod
    def bert_base_uncased(cls) -> Tokenizer:
        """With the vocabulary of the released models, which is part of this package. ModelError if it was changed."""
        found = cls(_lines(_read(SHIPPED)), _NAME)
        if not found.is_bert_base_uncased:
            raise ModelError(
                f"{file_name(SHIPPED)}: is not the vocabulary of {_NAME} any more. Install converter again."
            )
        return found

    @property
    def size(self) -> int:
        """Entries, as `vocab_size` of a model counts them."""
        return len(self.pieces)

    def check_size(self, vocab_size: object) -> None:
        """ModelError unless it has as many entries as the model that is to read its ids."""
        if self.size != vocab_size:
            raise ModelError(
                f"{self.origin}: the vocabulary has {self.size} entries, the model {vocab_size}. Give the vocabulary "
                "that the model was trained with: --vocab vocab.txt, or vocabulary= in Python."
            )

    @property
    def unknown(self) -> int:
        """The id of [UNK], for a word that is not in the vocabulary."""
        return self._ids["[UNK]"]

    @property
    def is_bert_base_uncased(self) -> bool:
        """Whether the vocabulary is that of BERT base uncased, byte for byte."""
        return hashlib.sha256(self._vocabulary_file()).hexdigest() == BERT_BASE_UNCASED_SHA256

    def encode(self, text: str) -> Encoded:
        """Tokens of a caption of any length. ModelError for half of a surrogate pair, which is not Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ModelError(
                f"{quoted(text, 80)} is not Unicode text: it holds half a surrogate pair. Type it again."
            ) from None
        encoding = self._backend.encode(text)
        added = encoding.special_tokens_mask
        spans = tuple(None if special else span for special, span in zip(added, encoding.offsets, strict=True))
        return Encoded(tuple(encoding.ids), spans)

    def described(self) -> dict[str, Any]:
        """What `config.json` says of the vocabulary."""
        sha256 = hashlib.sha256(self.files(1)["vocab.txt"]).hexdigest()
        return {"entries": self.size, "sha256": sha256, "bert_base_uncased": self.is_bert_base_uncased}

    @property
    def doubts(self) -> tuple[str, ...]:
        """What a card says of a vocabulary that is not the one of the released models."""
        doubt = "**The vocabulary is not that of BERT base uncased**, with which the released models were trained."
        return () if self.is_bert_base_uncased else (doubt,)

    def files(self, caption_tokens: int) -> dict[str, bytes]:
        """What `transformers.AutoTokenizer` loads: four files by name. Equal vocabularies give equal bytes."""
        config = {
            **SPECIAL,
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "model_max_length": caption_tokens,
        }
        return {
            "vocab.txt": self._vocabulary_file(),
            "tokenizer.json": self._backend.to_str(pretty=True).encode(),
            "tokenizer_config.json": _json(config),
            "special_tokens_map.json": _json(SPECIAL),
        }

    def _vocabulary_file(self) -> bytes:
        return "".join(f"{piece}\n" for piece in self.pieces).encode()

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

        backend = Tokenizer(models.WordPiece(self._ids, unk_token="[UNK]", max_input_chars_per_word=100))
        # strip_accents=None follows lowercase, so accents are stripped
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(token, self._ids[token]) for token in ("[CLS]", "[SEP]")],
        )
        backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
        ordered = sorted(SPECIAL.values(), key=lambda token: self._ids[token])
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in ordered])
        return backend


def find_tokenizer(model: Path, vocabulary: Path | None) -> Tokenizer:
    """The vocabulary that the user gave, else the one in the model's folder, else that of BERT base uncased."""
    if vocabulary is not None:
        return Tokenizer.load(vocabulary)
    if any((model / name).is_file() for name in FILES):
        return Tokenizer.load(model)
    return Tokenizer.bert_base_uncased()


_NAME = "BERT base uncased"
_MOST_LINES = 1 << 19  # the largest published vocabularies have 262,144 entries


def _read(path: Path) -> str:
    try:
        text = read_limited(path, OBJECT_LIMIT).decode()
        if text.count("\n") > _MOST_LINES:
            raise ValueError(f"more than {_MOST_LINES} lines")
        return text
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise ModelError(f"{file_name(path)}: cannot be read as a vocabulary: {reason}. Give one: --vocab vocab.txt")


def _lines(text: str) -> tuple[str, ...]:
    # not splitlines: the vocabulary may hold other characters that splitlines takes for line ends
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return tuple(line.removesuffix("\r") for line in lines)


def _pieces(path: Path, text: str) -> tuple[str, ...]:
    """The vocabulary in a `tokenizer.json`. ModelError unless it is an uncased WordPiece of ids without gaps."""
    where = file_name(path)
    try:
        content = parse_json(text)
        model, normalizer = content["model"], content["normalizer"] or {}
        kind, ids, small = model["type"], dict(model["vocab"]), normalizer.get("lowercase")
        pieces = tuple(sorted(ids, key=lambda piece: ids[piece]))
        gapless = [ids[piece] for piece in pieces] == list(range(len(pieces)))
        added = [token["content"] for token in content.get("added_tokens", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{where}: is not a tokenizer.json that can be read. Get it again, or give vocab.txt."
        ) from None
    if kind != "WordPiece" or small is not True:
        raise ModelError(f"{where}: is a tokenizer of another kind, expected an uncased WordPiece: that of {_NAME}.")
    more = [token for token in added if token not in ids]
    if not gapless or more:
        what = f"tokens outside its vocabulary ({plain(', '.join(map(str, more)))})" if more else "ids with gaps"
        raise ModelError(f"{where}: has {what}, expected the ids of its vocabulary alone.")
    return pieces


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"
