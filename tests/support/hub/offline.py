"""Ways of being without a network, each as what a program finds in its environment."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: whoever closes sends a reset


@contextmanager
def a_name_without_an_address() -> Iterator[dict[str, str]]:
    yield {"HF_ENDPOINT": "http://nowhere.invalid"}


@contextmanager
def a_port_that_nobody_listens_at() -> Iterator[dict[str, str]]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield {"HF_ENDPOINT": _address(taken)}


@contextmanager
def a_host_that_never_answers() -> Iterator[dict[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"HF_ENDPOINT": _address(server)}


@contextmanager
def a_host_that_is_not_there() -> Iterator[dict[str, str]]:
    """What asks for a connection is dropped, as the queue is full."""
    with ExitStack() as sockets:
        server = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield {"HF_ENDPOINT": _address(server)}


@contextmanager
def a_proxy_that_refuses() -> Iterator[dict[str, str]]:
    with _server(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as address:
        yield {"HF_ENDPOINT": "https://nowhere.invalid", "HTTPS_PROXY": address}


@contextmanager
def a_proxy_that_is_not_there() -> Iterator[dict[str, str]]:
    with a_port_that_nobody_listens_at() as found:
        yield {"HF_ENDPOINT": "https://nowhere.invalid", "HTTPS_PROXY": found["HF_ENDPOINT"]}


@contextmanager
def a_wall_that_resets() -> Iterator[dict[str, str]]:
    with _server(None) as address:
        yield {"HF_ENDPOINT": address}


@contextmanager
def a_page_to_sign_in_at() -> Iterator[dict[str, str]]:
    """As the network of a hotel answers everything."""
    with _server(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>") as address:
        yield {"HF_ENDPOINT": address}


WAYS = {
    way.__name__: way
    for way in (
        a_name_without_an_address,
        a_port_that_nobody_listens_at,
        a_host_that_never_answers,
        a_host_that_is_not_there,
        a_proxy_that_refuses,
        a_proxy_that_is_not_there,
        a_wall_that_resets,
        a_page_to_sign_in_at,
    )
}


def _address(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def _server(answer: bytes | None) -> Iterator[str]:
    """Gives everybody this answer, or a reset."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed
                    return
                with connection:
                    connection.recv(1 << 16)
                    if answer is None:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield _address(server)
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
