"""The Hugging Face Hub, through huggingface_hub alone, which is imported when it is needed.

Its settings are that package's: `HF_TOKEN` or `hf auth login`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`. The token is
kept in no variable of this package, and texts of errors are cleaned of it.
"""

from converter.hub.hashes import Hashes, hash_bytes, hash_file
from converter.hub.requests import (
    Failure,
    Retry,
    attempt,
    has_token,
    holds_token,
    insist,
    pause,
    quiet,
    show_progress,
)
from converter.hub.resolve import (
    MODEL_FILES,
    Reference,
    Resolved,
    is_model_file,
    is_on_hub,
    local_path,
    parse_reference,
    resolve,
)

__all__ = [
    "MODEL_FILES",
    "Failure",
    "Hashes",
    "Reference",
    "Resolved",
    "Retry",
    "attempt",
    "has_token",
    "hash_bytes",
    "hash_file",
    "holds_token",
    "insist",
    "is_model_file",
    "is_on_hub",
    "local_path",
    "parse_reference",
    "pause",
    "quiet",
    "resolve",
    "show_progress",
]
