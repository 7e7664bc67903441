"""A Hub on the loopback: the few endpoints a download needs, over real HTTP, with faults.

It counts what is asked of it and what it sends, so a test can say that nothing was.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

PIECE = 16_384  # bytes of one send
PAGE = b"<!DOCTYPE html><html><body>Please log in to the network</body></html>"


@dataclass
class Repo:
    """A repository with one commit.

    Args:
        sha: its commit.
        files: path -> bytes.
        refused: HTTP status and error code of all that is asked of it; empty for none.
        plain: paths that git keeps itself, so that the Hub has no sha256 of them.
        refs: tags and branches beside main, at the same commit.
        card: what the head of its model card says.
        faults: path -> (kind, how many GETs), kinds: `cut`, `stall`, `slow`, `flip`, `busy`,
            `page`, `range`, `gone`, `short`.
    """

    sha: str
    files: dict[str, bytes]
    refused: tuple[int, str] | tuple[()] = ()
    plain: frozenset[str] = frozenset()
    refs: tuple[str, ...] = ()
    card: dict[str, str] = field(default_factory=dict)
    faults: dict[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """One request, the bytes that its answer carried, and the token that it brought."""

    method: str
    path: str
    start: int
    sent: int
    token: str


class LoopbackHub:
    """A server in a thread; a context manager."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[Asked] = []
        self.release = threading.Event()  # ends a stall
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def address(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forget(self) -> None:
        """Begin to count anew."""
        self.asked.clear()

    def gets(self, path: str = "") -> list[Asked]:
        """Return the downloads of files whose path ends so."""
        return [
            one
            for one in self.asked
            if one.method == "GET" and "/resolve/" in one.path and one.path.endswith(path)
        ]

    def note(self, asked: Asked) -> None:
        """Remember a request."""
        with self._lock:
            self.asked.append(asked)

    def take_fault(self, repo: Repo, path: str) -> str:
        """Return the fault that this GET meets, and count it."""
        with self._lock:
            kind, times = repo.faults.get(path, ("", 0))
            if times > 0:
                repo.faults[path] = (kind, times - 1)
            return kind if times else ""


class _Handler(BaseHTTPRequestHandler):
    """Answers as the Hub does, as far as a download notices."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        sent = 0
        try:
            sent = self._route()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
            token = self.headers.get("Authorization", "")
            self.hub.note(Asked(self.command, self.path.split("?")[0], int(start), sent, token))

    def _route(self) -> int:
        words = self.path.split("?")[0].strip("/").split("/")
        if words[:2] == ["api", "models"] and len(words) in (4, 6):
            return self._describe("/".join(words[2:4]), words[5] if len(words) == 6 else "main")
        if len(words) > 4 and words[2] == "resolve":
            return self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))
        return self._send(404, {}, b"{}")

    def _refusal(self, name: str, revision: str) -> tuple[int, str] | tuple[()]:
        """Return the status and code with which the repository itself is refused."""
        repo = self.hub.repos.get(name)
        if repo is None:
            return 401, "RepoNotFound"
        if repo.refused:
            return repo.refused
        return () if revision in ("main", repo.sha, *repo.refs) else (404, "RevisionNotFound")

    def _describe(self, name: str, revision: str) -> int:
        if refusal := self._refusal(name, revision):
            return self._send(refusal[0], {"X-Error-Code": refusal[1]}, b"{}")
        repo = self.hub.repos[name]
        siblings: list[dict[str, Any]] = []
        for path, data in repo.files.items():
            entry = {"rfilename": path, "size": len(data), "blobId": _git_hash(data)}
            lfs = {"sha256": _sha(data), "size": len(data), "pointerSize": 135}
            siblings.append(entry if path in repo.plain else {**entry, "lfs": lfs})
        record = {"id": name, "modelId": name, "sha": repo.sha, "private": False, "tags": []}
        record["cardData"] = repo.card
        text = json.dumps({**record, "siblings": siblings})
        return self._send(200, {"Content-Type": "application/json"}, text.encode())

    def _resolve(self, name: str, revision: str, path: str) -> int:
        if refusal := self._refusal(name, revision):
            return self._send(refusal[0], {"X-Error-Code": refusal[1]}, b"{}")
        repo = self.hub.repos[name]
        data = repo.files.get(path)
        if data is None or repo.faults.get(path, ("", 0))[0] == "gone":
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"{}")
        if repo.faults.get(path, ("", 0))[0] == "page":
            return self._send(200, {"Content-Type": "text/html"}, PAGE)
        headers = {"X-Repo-Commit": repo.sha, "Accept-Ranges": "bytes"}
        if path in repo.plain:
            headers["ETag"] = f'"{_git_hash(data)}"'
        else:
            headers |= {"ETag": f'"{_sha(data)}"', "X-Linked-ETag": f'"{_sha(data)}"'}
            headers["X-Linked-Size"] = str(len(data))
        if self.command == "HEAD":
            return self._send(200, headers, data)
        return self._transfer(repo, path, data, headers)

    def _transfer(self, repo: Repo, path: str, data: bytes, headers: dict[str, str]) -> int:
        """Send a file, or what a fault makes of it."""
        start = 0
        status = 200
        if words := self.headers.get("Range"):
            start = int(words.removeprefix("bytes=").split("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        fault = self.hub.take_fault(repo, path)
        if fault == "busy":
            return self._send(429, {"Retry-After": "0"}, b"{}")
        if fault == "range" and start:
            return self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        if fault == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault == "short":
            return self._send(200, headers, data[: len(data) // 2])
        if fault in ("cut", "stall", "range"):
            return self._part(status, headers, data[start:], fault == "stall")
        return self._send(status, headers, data[start:], slow=fault == "slow")

    def _part(self, status: int, headers: dict[str, str], data: bytes, stall: bool) -> int:
        """Promise all, send half, then close the connection or say nothing more."""
        half = data[: max(1, len(data) // 2)]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(half)
        self.wfile.flush()
        if stall:
            self.hub.release.wait(30)
        self.close_connection = True
        return len(half)

    def _send(self, status: int, headers: dict[str, str], body: bytes, slow: bool = False) -> int:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return 0
        for begin in range(0, len(body), PIECE):
            self.wfile.write(body[begin : begin + PIECE])
            if slow:
                time.sleep(0.1)
        return len(body)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
