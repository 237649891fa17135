"""Downloads that survive interruption.

Bytes arrive in ``NAME.part``; a note beside it remembers the address and the server's validator
(ETag or Last-Modified), so that a later call asks for the missing range only while the file on the
server is still the same one. Size and SHA-256 are checked before the file gets its final name, and
the digest is written to ``NAME.sha256``: an address without a published digest is thus compared
with what it gave the first time.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftworks.data.progress import progress_bar
from driftworks.errors import UserError

__all__ = ["download", "sha256_of"]

_CHUNK = 1 << 18
_AGENT = "driftworks (python urllib)"


def download(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    size: int | None = None,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 1.0,
    progress: bool = True,
) -> Path:
    """Fetch `url` to `path`, going on where an earlier attempt stopped.

    Parameters
    ----------
    url: http or https
    path: final name; left alone when it is there already and its digest is right
    sha256: published digest in hex; without it the one recorded at the first download is used
    size: published size [bytes]
    attempts: connections to try while the transfer makes no headway
    timeout: seconds without a byte before a connection is given up
    pause: seconds to wait before the second attempt, doubled each time
    progress: show a bar

    Raises `UserError` when the server cannot be reached, answers with an error, or the bytes are
    not the expected ones; what has arrived is kept unless it is wrong.
    """
    path = Path(path)
    record = path.with_name(path.name + ".sha256")
    expected = sha256 or _recorded(record)
    if path.exists():
        found = sha256_of(path)
        if expected and found != expected:
            raise UserError(
                f"{path} has sha256 {found}, expected {expected}; remove it to download it again"
            )
        if not expected:
            _write_record(record, found, url)
        return path
    if not url.lower().startswith(("http://", "https://")):
        raise UserError(f"cannot download {url!r}: not an http or https address")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as part:
            transfer = _Transfer(url, path, part, timeout)
            with progress_bar(f"downloading {path.name}", show=progress, data=True) as show:
                transfer.run(attempts, pause, show)
            _verify(path, part, url, expected, size)
            found = sha256_of(part)
            _write_record(record, found, url)
            os.replace(part, path)
            transfer.note.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class _Broken(Exception):
    """The connection failed in a way that another attempt may mend."""


@dataclass
class _Transfer:
    url: str
    path: Path
    part: Path
    timeout: float

    @property
    def note(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    def run(self, attempts: int, pause: float, show: Callable[[int, int | None], None]) -> None:
        failed, reason, furthest = 0, "", self._have()
        while failed < attempts:
            if failed:
                time.sleep(pause * 2 ** (failed - 1))
            try:
                if self._fetch(show):
                    return
                reason = "the connection closed early"
            except _Broken as error:
                reason = str(error)
            failed = 1 if self._have() > furthest else failed + 1
            furthest = max(furthest, self._have())
        have = self._have()
        kept = f"; {have:,} bytes are kept and the next run goes on from there" if have else ""
        raise UserError(f"cannot download {self.url} to {self.path}: {reason}{kept}")

    def _have(self) -> int:
        return self.part.stat().st_size

    def _fetch(self, show: Callable[[int, int | None], None]) -> bool:
        """One connection; True when the file is complete."""
        note = self._read_note()
        have = self._have()
        validator = note.get("validator") if note.get("url") == self.url else None
        if not validator:
            have = 0
        request = urllib.request.Request(self.url, headers={"User-Agent": _AGENT})
        if have and validator:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", validator)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return self._receive(response, have, show)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                # nothing is left to send, or the file has changed: which one, the sizes tell
                if note.get("total") == have:
                    return True
                self._restart({})
                raise _Broken("the file on the server has changed") from error
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _Broken(f"the server answered {error.code} {error.reason}") from error
            raise UserError(
                f"cannot download {self.url}: the server answered {error.code} {error.reason}"
            ) from error
        except urllib.error.URLError as error:
            reason = getattr(error.reason, "strerror", None) or error.reason
            raise _Broken(f"no connection ({reason}); is this machine online?") from error
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise _Broken(f"the connection broke ({type(error).__name__})") from error

    def _receive(self, response: Any, have: int, show: Callable[[int, int | None], None]) -> bool:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        if response.status == 206:
            header = response.headers.get("Content-Range", "")
            found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", header.strip())
            if not found or int(found[1]) != have:
                self._restart({})
                raise _Broken(f"the server sent another range than asked for ({header!r})")
            total = int(found[3]) if found[3] != "*" else int(found[2]) + 1
        else:
            have = 0
            etag = response.headers.get("ETag") or ""
            validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
            self._restart({"url": self.url, "validator": validator, "total": total})
        with open(self.part, "ab") as handle:
            try:
                while chunk := self._chunk(response):
                    handle.write(chunk)
                    have += len(chunk)
                    show(have, total)
            finally:
                handle.flush()
                os.fsync(handle.fileno())
        return total is None or have >= total

    @staticmethod
    def _chunk(response: Any) -> bytes:
        try:
            return bytes(response.read(_CHUNK))
        except (OSError, http.client.HTTPException) as error:  # of the network, not of the disk
            raise _Broken(f"the connection broke ({type(error).__name__})") from error

    def _restart(self, note: dict[str, Any]) -> None:
        with open(self.part, "r+b") as handle:
            handle.truncate(0)
        self.note.write_text(json.dumps(note), encoding="utf-8")

    def _read_note(self) -> dict[str, Any]:
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}


def _verify(path: Path, part: Path, url: str, sha256: str | None, size: int | None) -> None:
    """Drop bytes that are not the expected ones, so that the next run starts afresh."""
    have = part.stat().st_size
    wrong = None
    if size is not None and have != size:
        wrong = f"{have:,} bytes arrived, expected {size:,}"
    elif sha256 and (found := sha256_of(part)) != sha256.lower():
        wrong = f"sha256 is {found}, expected {sha256}"
    if wrong:
        with open(part, "r+b") as handle:
            handle.truncate(0)
        raise UserError(f"{url} is not the expected {path.name}: {wrong}")


def _recorded(record: Path) -> str | None:
    try:
        first = record.read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    return first if re.fullmatch(r"[0-9a-f]{64}", first) else None


def _write_record(record: Path, digest: str, url: str) -> None:
    new = record.with_name(record.name + ".tmp")
    with open(new, "w", encoding="utf-8") as handle:
        handle.write(f"{digest}  {url}\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(new, record)


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """The part file, held so that no second process writes to it."""
    part = path.with_name(path.name + ".part")
    with open(part, "ab") as handle:
        try:
            import fcntl
        except ImportError:  # not on Windows
            pass
        else:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another process is downloading {path}") from error
        try:
            yield part
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()
                part.with_name(part.name + ".json").unlink(missing_ok=True)
