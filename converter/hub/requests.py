"""Requests to the Hub through huggingface_hub: retried where that may help, and failures as values.

The client's exceptions become `Failure` values where they are caught, and no error of ours is chained to one: an
exception or its frames may hold the token. Without a network the first request fails within seconds, see `reach`.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

from converter.display import plain
from converter.errors import HubError

T = TypeVar("T")
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_FIRST_ANSWER = 5.0  # seconds; with what a program needs to start, no command takes 10 where there is no network


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a request is made, and the seconds between: `first`, doubled each time up to `longest`.

    A Hub that asks for more than `patience` seconds is not waited for.
    """

    attempts: int = 5
    first: float = 1.0
    longest: float = 30.0
    patience: float = 300.0
    sleep: Callable[[float], object] = time.sleep

    def delay(self, attempt: int, failure: Failure) -> float | None:
        """Seconds to wait after attempt 0, 1, ...; None after the last one."""
        if attempt + 1 >= self.attempts:
            return None
        if failure.wait is not None:
            return failure.wait if failure.wait <= self.patience else None
        return min(self.first * 2.0**attempt, self.longest)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request gave no answer. `wait`: seconds that the Hub asks to wait; `text`: one line, without secrets.

    `refused` is a connection that was not made, `lost` one that was, and `unreachable` a name without an address, or no
    answer at all.
    """

    kind: Literal[
        "repository",
        "revision",
        "file",
        "access",
        "token",
        "stale",
        "busy",
        "lost",
        "refused",
        "unreachable",
        "offline",
        "disk",
        "other",
    ]
    text: str
    status: int | None = None
    wait: float | None = None

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.kind in ("busy", "lost", "refused")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence huggingface_hub's own log: it names addresses with signatures in them."""
    from huggingface_hub.utils import logging as library  # its import sets the level, so it comes first

    level = library.get_verbosity()
    library.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        library.set_verbosity(level)


def show_progress(shown: bool) -> None:
    """Whether huggingface_hub draws its bars, for the rest of the process."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if shown else disable_progress_bars)()


def attempt(request: Callable[[], T]) -> T | Failure:
    """Make a request once. What the client raises becomes a value, so that no traceback can carry it further."""
    try:
        return request()
    except HubError:
        raise
    except Exception as error:
        return _failure(error)


def insist(request: Callable[[], T], retry: Retry, say: Callable[[str], object]) -> T | Failure:
    """Repeat an idempotent request until it succeeds or repeating cannot help."""
    for number in range(retry.attempts):
        answer = attempt(request)
        if not isinstance(answer, Failure) or not answer.passes or not pause(number, answer, retry, say):
            break
    return answer


def reach(request: Callable[[], T], retry: Retry, say: Callable[[str], object]) -> T | Failure:
    """The first request of all: as `insist`, but it fails within `first_answer()` seconds unless the Hub is heard.

    A connection that is not made is not tried again: there is no network, or no way through it.
    """
    left = first_answer()
    for number in range(retry.attempts):
        start = time.monotonic()
        answer = _heard(request, left)
        if not isinstance(answer, Failure) or not answer.passes or answer.kind == "refused":
            break
        is_heard = answer.status is not None
        if not is_heard:
            left -= time.monotonic() - start + (retry.delay(number, answer) or 0.0)
        if left <= 0 or not pause(number, answer, retry, say if is_heard else lambda line: None):
            break
    return answer


def first_answer() -> float:
    """Seconds for the Hub's first answer. HF_HUB_ETAG_TIMEOUT gives others."""
    from huggingface_hub import constants

    stated = float(constants.HF_HUB_ETAG_TIMEOUT)
    return _FIRST_ANSWER if stated == constants.DEFAULT_ETAG_TIMEOUT else stated


def _heard(request: Callable[[], T], seconds: float) -> T | Failure:
    """What is answered in time. After half of it the request is made once more, and the first answer is taken.

    In other threads, since nothing else bounds a look-up of a name, or the addresses that are tried one after the
    other. They are left behind: the program ends without them.
    """
    answers: queue.SimpleQueue[T | Failure] = queue.SimpleQueue()
    for _ in range(2):
        threading.Thread(target=lambda: answers.put(attempt(request)), daemon=True).start()
        with suppress(queue.Empty):
            return answers.get(timeout=seconds / 2)
    return Failure(
        "unreachable", f"the Hub did not answer within {seconds:.2g} s (HF_HUB_ETAG_TIMEOUT=60 waits longer)"
    )


def pause(number: int, failure: Failure, retry: Retry, say: Callable[[str], object]) -> bool:
    """Wait before the next attempt. False if there will be no other."""
    delay = retry.delay(number, failure)
    if delay is None:
        return False
    say(f"{failure.text}; again in {delay:g} s ({number + 2} of {retry.attempts})")
    retry.sleep(delay)
    return True


def _failure(error: Exception) -> Failure:
    from huggingface_hub import errors

    # an upload's own error is wrapped by a plain RuntimeError, one of a download by "not in the cache"
    while (
        isinstance(error, RuntimeError | errors.LocalEntryNotFoundError) or type(error) is ValueError
    ) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    text = _clean(getattr(error, "server_message", None) or str(error) or type(error).__name__)
    text = f"the Hub answered {status}: {text}" if status and not text.startswith(str(status)) else text
    transport = sys.modules[errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0]]  # httpx, or httpx2
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return Failure("offline", text)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return Failure("token", "no token was found")
    if isinstance(error, errors.GatedRepoError):
        return Failure("access", text, status)
    if isinstance(error, errors.RepositoryNotFoundError):
        return Failure("repository", text, status)
    if isinstance(error, errors.RevisionNotFoundError):
        return Failure("revision", text, status)
    if isinstance(error, errors.EntryNotFoundError):
        return Failure("file", text, status)
    if status in (401, 403):
        return Failure("access", text, status)
    if status == 412:
        return Failure("stale", text, status)
    if status in _TRANSIENT_STATUS:
        return Failure("busy", text, status, _wait(response.headers) if response is not None else None)
    if isinstance(error, transport.ConnectError) and _is_look_up(error):
        return Failure("unreachable", f"{error.request.url.host} cannot be reached: a name look-up failed ({text})")
    if isinstance(error, transport.ConnectError | transport.ConnectTimeout | transport.ProxyError):
        of_proxy = "a proxy says " * isinstance(error, transport.ProxyError)
        return Failure("refused", f"{error.request.url.host} cannot be reached: {of_proxy}{text}")
    if isinstance(error, transport.TimeoutException | transport.NetworkError | transport.RemoteProtocolError):
        return Failure("lost", f"the connection was lost ({text})")
    if isinstance(error, UnicodeEncodeError) and error.encoding == "ascii":  # as headers are
        return Failure("token", "the token holds characters that no token has")
    if isinstance(error, json.JSONDecodeError):
        return Failure("lost", "the answer is not JSON, so not the Hub's")
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return Failure("lost", "the download ended too early")
    if isinstance(error, OSError) and error.strerror:
        return Failure("disk", f"{error.strerror}{f' ({plain(str(error.filename), 1024)})' if error.filename else ''}")
    return Failure("other", text, status)


def _is_look_up(error: BaseException | None) -> bool:
    """Whether it comes of a name that has no address: of the Hub, or of a proxy."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None


def _wait(headers: Any) -> float | None:
    """Seconds asked for by Retry-After, as a number or a date, or by the rate limit's headers."""
    value = str(headers.get("retry-after") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    if value:
        try:
            return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
        except (TypeError, ValueError):
            return None
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*([0-9]{1,9})", str(headers.get("ratelimit") or ""))
    return float(limit[1]) if limit else None


def has_token() -> bool:
    """Whether there is a token to sign in with."""
    return _token() is not None


def holds_token(content: bytes) -> bool:
    """Whether the token in use is in `content`."""
    token = _token()
    return token is not None and token.encode(errors="surrogateescape") in content


def _token() -> str | None:
    from huggingface_hub import get_token

    try:
        return get_token() or None
    except Exception:  # what the client says about it is not to be shown
        return None


def _clean(text: str) -> str:
    """One line without tokens and without what follows `?` in an address, where signatures are."""
    if secret := _token():
        text = text.replace(secret, "[token]")
    text = re.sub(r"\bhf_[A-Za-z0-9_]{8,}|(?<=Bearer )[^\s'\"]+", "[token]", text)
    text = re.sub(r"(https?://[^\s?]*)\?\S+", r"\1?...", text)
    return plain(" ".join(text.split()), limit=400).rstrip(".")
