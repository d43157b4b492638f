"""A small file from an http(s) address, which is nobody's to trust. Through the HTTP library of huggingface_hub."""

from __future__ import annotations

import queue
import sys
import threading
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

from converter import __version__
from converter.display import plain
from converter.errors import ModelError

SCHEMES = ("http", "https")
REDIRECTS = 5
CONNECT_SECONDS, READ_SECONDS, ALL_SECONDS = 8.0, 30.0, 300.0


def is_address(text: str) -> bool:
    """Whether it reads like an address, of any scheme, rather than a path."""
    return "://" in text and text.partition("://")[0].isalnum()


def check_address(text: str) -> None:
    """ModelError unless it is an http(s) address of a host. Nothing is asked of anybody."""
    try:
        parts = urlsplit(text)
        sound = parts.scheme.lower() in SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or not text.isprintable() or " " in text:
        raise ModelError(f"{shown(text)}: is not an address of the kind https://host/picture.jpg. Check it.")


def shown(address: str) -> str:
    """An address for a message: without a password and without what follows `?`, where signatures are."""
    head, _, query = address.partition("?")
    scheme, separator, rest = head.partition("://")
    host, slash, path = rest.partition("/")
    return plain(f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}{'?...' if query else ''}", 1024)


def fetch(address: str, limit: int) -> bytes:
    """What the address gives, at most `limit` bytes. No cookie, token or password of anywhere else is sent.

    At most REDIRECTS times it may send elsewhere, and from https only to https. ModelError, within CONNECT_SECONDS
    where nobody answers, and at the latest ALL_SECONDS after the call.
    """
    library, where = _library(), shown(address)
    answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(_followed(library, address, where, limit))
        except Exception as error:
            answers.put(error)

    # nothing else bounds a look-up of a name, or headers that come byte by byte; what is late is left behind
    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=ALL_SECONDS)
    except queue.Empty:
        raise _late(where) from None
    if isinstance(answer, library.HTTPError | library.InvalidURL | OSError | ValueError):
        reason = plain(str(answer) or type(answer).__name__, 200)
        raise ModelError(f"{where}: cannot be fetched: {reason}. Check the address and the connection.") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _followed(library: Any, address: str, where: str, limit: int) -> bytes:
    """What is at the address, or where that sends to."""
    until = time.monotonic() + ALL_SECONDS
    # nothing is unpacked on the way: a few bytes could become many
    headers = {"User-Agent": f"converter/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
    with library.Client(
        timeout=library.Timeout(READ_SECONDS, connect=CONNECT_SECONDS), headers=headers, follow_redirects=False
    ) as client:
        for _ in range(REDIRECTS + 1):
            check_address(address)
            client.cookies.clear()
            with client.stream("GET", address) as response:
                if not response.has_redirect_location:
                    return _body(response, where, limit, until)
                address = _next(address, response.headers["location"], where)
    raise ModelError(f"{where}: redirects more than {REDIRECTS} times. Give the last address.")


def _late(where: str) -> ModelError:
    return ModelError(f"{where}: was not complete after {ALL_SECONDS:.0f} seconds. Download it by other means.")


def _body(response: Any, where: str, limit: int, until: float) -> bytes:
    if response.status_code != 200:
        raise ModelError(f"{where}: the server answered {response.status_code}, expected 200. Check the address.")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise ModelError(f"{where}: the server sends compressed data, though asked not to. Download it by other means.")
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > limit:
            raise ModelError(f"{where}: has more than {limit >> 20} MiB. Make a smaller copy of it.")
        if time.monotonic() > until:
            raise _late(where)
    return bytes(content)


def _next(address: str, location: str, where: str) -> str:
    """Where it sends to. ModelError for what is not http(s), or would leave https."""
    further = urljoin(address, location)
    if urlsplit(address).scheme.lower() == "https" and urlsplit(further).scheme.lower() != "https":
        raise ModelError(f"{where}: redirects from https to {shown(further)}. Give that address if you trust it.")
    return further


def _library() -> Any:
    """httpx or httpx2, whichever huggingface_hub uses."""
    from huggingface_hub import errors

    return sys.modules[errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0]]
