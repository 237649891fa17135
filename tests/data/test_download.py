"""Downloads against a server on this machine that can cut, refuse, lie and change its mind."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from driftworks.data.download import download, sha256_of
from driftworks.errors import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; `cuts` are bytes after which the next answers break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.cuts: list[int] = []
        self.errors: list[int] = []
        self.ranges = True
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files/data.bin"

    def handle_error(self, request: object, address: object) -> None:
        pass  # the client of a test may leave early


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append(asked)
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", server.url)
            self.end_headers()
            return
        whole, start = server.content, 0
        if asked and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(whole):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(whole) - start))
        self.send_header("ETag", server.etag)
        self.end_headers()
        body = whole[start:]
        if server.cuts:
            body = body[: server.cuts.pop(0)]
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, path: Path, **options) -> Path:
    return download(server.url, path, progress=False, pause=0.01, **options)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_file())


def test_a_file_arrives_whole_with_its_digest_recorded(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path / "a" / "data.bin", sha256=DIGEST, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["data.bin", "data.bin.sha256"]
    assert (path.parent / "data.bin.sha256").read_text().split() == [DIGEST, server.url]
    assert sha256_of(path) == DIGEST


def test_a_cut_connection_is_resumed_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 700_000, 0]
    path = fetch(server, tmp_path / "data.bin", sha256=DIGEST)
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000000-", "bytes=1700000-", "bytes=1700000-"]


def test_a_later_run_resumes_what_an_earlier_one_kept(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_234_567] + [0] * 9
    with pytest.raises(UserError, match="1,234,567 bytes are kept and the next run goes on"):
        fetch(server, tmp_path / "data.bin", sha256=DIGEST, attempts=3)
    assert names(tmp_path) == ["data.bin.part", "data.bin.part.json"]
    server.cuts, server.requests = [], []
    fetch(server, tmp_path / "data.bin", sha256=DIGEST)
    assert server.requests == ["bytes=1234567-"]
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["data.bin", "data.bin.sha256"]


def test_a_part_that_is_complete_needs_no_bytes(server: Server, tmp_path: Path) -> None:
    server.cuts = [2_999_999] + [0] * 9
    with pytest.raises(UserError):
        fetch(server, tmp_path / "data.bin", attempts=1)
    with open(tmp_path / "data.bin.part", "ab") as handle:
        handle.write(CONTENT[-1:])
    server.cuts = []
    assert fetch(server, tmp_path / "data.bin", sha256=DIGEST).read_bytes() == CONTENT


def test_a_file_that_changed_on_the_server_is_not_spliced(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 0]
    with pytest.raises(UserError):
        fetch(server, tmp_path / "data.bin", attempts=1)
    server.content, server.etag, server.cuts = CONTENT[::-1], '"two"', []
    assert fetch(server, tmp_path / "data.bin").read_bytes() == CONTENT[::-1]


def test_a_shorter_file_on_the_server_is_not_spliced(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 0]
    with pytest.raises(UserError):
        fetch(server, tmp_path / "data.bin", attempts=1)
    server.content, server.cuts = CONTENT[:500], []
    assert fetch(server, tmp_path / "data.bin").read_bytes() == CONTENT[:500]


def test_a_server_without_ranges_still_delivers(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [1_000_000, 2_000_000]
    assert fetch(server, tmp_path / "data.bin", sha256=DIGEST).read_bytes() == CONTENT


def test_a_wrong_digest_or_size_is_refused_and_dropped(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"sha256 is {DIGEST}, expected 00"):
        fetch(server, tmp_path / "data.bin", sha256="0" * 64)
    with pytest.raises(UserError, match="3,000,000 bytes arrived, expected 5"):
        fetch(server, tmp_path / "data.bin", size=5)
    assert names(tmp_path) == []


def test_a_second_download_is_compared_with_the_first(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path / "data.bin")
    path.unlink()
    server.content, server.etag = CONTENT[::-1], '"two"'
    with pytest.raises(UserError, match=f"expected {DIGEST}"):
        fetch(server, path)


def test_a_file_that_is_there_is_checked_and_not_fetched(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path / "data.bin")
    fetch(server, path)
    assert len(server.requests) == 1
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="remove it to download it again"):
        fetch(server, path)


def test_a_missing_file_is_one_clear_error_without_retries(server: Server, tmp_path: Path) -> None:
    server.errors = [404]
    with pytest.raises(UserError, match="the server answered 404"):
        fetch(server, tmp_path / "data.bin")
    assert len(server.requests) == 1 and names(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.errors = [503, 429]
    assert fetch(server, tmp_path / "data.bin", sha256=DIGEST).exists()
    server.errors = [503] * 9
    with pytest.raises(UserError, match="the server answered 503"):
        fetch(server, tmp_path / "other.bin", attempts=2)
    assert len(server.requests) == 3 + 2


def test_a_redirection_keeps_the_range(server: Server, tmp_path: Path) -> None:
    moved = server.url.replace("/files/", "/moved/")
    server.cuts = [2_000_000]
    download(moved, tmp_path / "data.bin", sha256=DIGEST, progress=False, pause=0.01)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.requests == [None, None, "bytes=2000000-", "bytes=2000000-"]


def test_being_offline_is_one_clear_error(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/data.bin"
    with pytest.raises(UserError, match="is this machine online") as caught:
        download(url, tmp_path / "data.bin", progress=False, pause=0.01, attempts=2)
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/data.bin"
        with pytest.raises(UserError, match="timed out|TimeoutError"):
            download(url, tmp_path / "d", progress=False, pause=0.01, attempts=1, timeout=0.2)


def test_only_web_addresses_are_fetched(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(UserError, match="not an http or https address"):
        download((tmp_path / "secret").as_uri(), tmp_path / "copy", progress=False)


def test_two_downloads_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / "data.bin.part", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is downloading"):
            fetch(server, tmp_path / "data.bin")
    assert fetch(server, tmp_path / "data.bin", sha256=DIGEST).exists()


def test_an_unwritable_folder_is_a_user_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        fetch(server, tmp_path / "file" / "data.bin")
