"""A picture from an address: a server may send what it likes, and a run neither hangs nor takes in too much."""

from __future__ import annotations

import gzip
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import skimage.data
from click.testing import CliRunner
from PIL import Image

from converter.cli import main
from converter.errors import ModelError
from converter.hub import web
from tests.support.small_folder import small_folder


def picture() -> bytes:
    content = io.BytesIO()
    Image.fromarray(skimage.data.rocket()).resize((120, 90)).save(content, format="JPEG")
    return content.getvalue()


class _Answers(BaseHTTPRequestHandler):
    """`/kind/...`: what is answered."""

    content = picture()
    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        with suppress(OSError):
            getattr(self, f"answer_{self.path.split('/')[1]}")()

    def send(self, content: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def answer_picture(self) -> None:
        self.send(self.content)

    def answer_absent(self) -> None:
        self.send(b"<html>", 404)

    def answer_page(self) -> None:
        self.send(b"<!doctype html>" * 100, Content_Type="image/jpeg")

    def answer_half(self) -> None:
        self.send(self.content[:500], Content_Length=str(len(self.content)))

    def answer_packed(self) -> None:
        self.send(gzip.compress(bytes(1 << 20)), Content_Encoding="gzip")

    def answer_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 16))

    def answer_slow(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def answer_headers(self) -> None:
        self.trickle(b"HTTP/1.1 200 OK\r\n", b"x")

    def answer_waiting(self) -> None:
        self.trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n")

    def answer_extension(self) -> None:
        self.trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x")

    def trickle(self, first: bytes, then: bytes) -> None:
        self.wfile.write(first)
        for _ in range(60):
            self.wfile.write(then)
            time.sleep(0.05)

    def answer_elsewhere(self) -> None:
        self.send(b"", 302, Location="http://[::1")

    def answer_silent(self) -> None:
        time.sleep(3)

    def answer_hops(self) -> None:
        left = int(self.path.split("/")[2])
        self.send(b"", 302, Location=f"/hops/{left - 1}/x.jpg" if left else "/picture/x.jpg", Set_Cookie="a=b; Path=/")

    def answer_file(self) -> None:
        self.send(b"", 301, Location="file:///etc/passwd")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def seen() -> list[dict[str, str]]:
    _Answers.seen = []
    return _Answers.seen


def test_what_the_address_gives(server: str, seen: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    assert web.fetch(f"{server}/picture/a.jpg?x=1", 1 << 20) == picture()
    assert web.fetch(f"{server}/hops/4/a.jpg", 1 << 20) == picture()  # 5 in all
    assert len(seen) == 7
    for headers in seen:
        assert headers["user-agent"].startswith("converter/")
        assert headers["accept-encoding"] == "identity"
        assert not {"cookie", "authorization"} & headers.keys()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("absent/a.jpg?key=secret", "/absent/a.jpg?...: the server answered 404, expected 200"),
        ("half/a.jpg", "cannot be fetched: "),
        ("packed/a.jpg", "sends compressed data"),
        ("endless/a.jpg", "has more than 1 MiB"),
        ("hops/5/a.jpg", "redirects more than 5 times"),
        ("elsewhere/a.jpg", "cannot be fetched: Invalid IPv6 URL"),
        ("file/a.jpg", "/etc/passwd: is not an address"),
    ],
)
def test_what_cannot_be_used(path: str, said: str, server: str) -> None:
    with pytest.raises(ModelError) as error:
        web.fetch(f"{server}/{path}", 1 << 20)
    assert said in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(("path", "setting", "said"), [
    ("slow", "ALL_SECONDS", "was not complete after 0 seconds"),
    ("headers", "ALL_SECONDS", "was not complete after 0 seconds"),
    ("waiting", "ALL_SECONDS", "was not complete after 0 seconds"),
    ("extension", "ALL_SECONDS", "was not complete after 0 seconds"),
    ("silent", "READ_SECONDS", "cannot be fetched: "),
])  # fmt: skip
def test_nobody_is_waited_for_for_long(
    path: str, setting: str, said: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, setting, 0.3)
    start = time.monotonic()
    with pytest.raises(ModelError) as error:
        web.fetch(f"{server}/{path}/a.jpg", 1 << 20)
    assert said in str(error.value)
    assert time.monotonic() - start < 2.5


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(ModelError, match=r"cannot be fetched: .*[Rr]efused"):
        web.fetch("http://127.0.0.1:1/a.jpg", 1 << 20)


@pytest.mark.parametrize("host", ["a..b", "a" * 300])
def test_a_host_that_no_name_has(host: str) -> None:
    with pytest.raises(ModelError, match="cannot be fetched: "):
        web.fetch(f"http://{host}/a.jpg", 1 << 20)


def test_https_is_not_left() -> None:
    assert web._next("https://a/b/c.jpg", "../d.jpg", "") == "https://a/d.jpg"
    with pytest.raises(ModelError, match=r"redirects from https to http://a/d\.jpg"):
        web._next("https://a/c.jpg", "http://a/d.jpg", "https://a/c.jpg")


def test_things_are_found_in_a_picture_from_an_address(server: str, tmp_path: Path) -> None:
    """As in the same file; one that cannot be had is an error, and the others are done."""
    (tmp_path / "a.jpg").write_bytes(picture())
    addresses = [f"{server}/picture/a%20%2Fb.jpg", f"{server}/page/a.jpg", f"{server}/absent/a.jpg"]
    command = ["detect", str(small_folder(tmp_path / "small")), str(tmp_path / "a.jpg"), *addresses, "--json"]
    options = ["--prompt", "person.", "--threshold", "0.3", "--out", str(tmp_path / "found")]
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == 7
    file, first, page, absent = json.loads(result.stdout)["images"]
    assert first["boxes"]
    assert {**first, "image": "", "drawing": ""} == {**file, "image": "", "drawing": ""}
    assert page["error"].startswith(f"{addresses[1]}: is not a picture of a known kind")
    assert "answered 404" in absent["error"]
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["a.jpg", "b.jpg", "detections.json"]
    public = addresses[0].replace("//", "//me:secret@") + "?key=secret"
    result = CliRunner().invoke(main, [*command[:2], public, "--prompt", "person."])
    assert f"{addresses[0]}?...: 120x90" in result.stdout
    assert "secret" not in result.output
