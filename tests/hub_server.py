"""A loopback server that speaks the Hub's protocol to the unmodified clients, and fails when it is told to."""

import hashlib
import json
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD path" contains every word of `where`.

    `kind`: silent (no answer for `seconds`), status (with `status`, `headers`), reset and close (half-way through the
    body; before any answer to a HEAD), short (half of the body, announced as all), flip (one byte changed), stall (half
    of the body, then nothing for `seconds`).
    """

    where: str
    kind: str
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    times: float = 1
    met: int = 0


class Hub:
    """Repositories as {name: {revision: folder}}; `gated` names refuse with 401 until a token comes.

    Revisions in `tags` are tags, all others branches.

    `bandwidth`: bytes a second of every file's body, None for as fast as it goes.
    """

    def __init__(
        self,
        repositories: dict[str, dict[str, Path]],
        gated: tuple[str, ...] = (),
        bandwidth: float | None = None,
    ) -> None:
        self.repositories, self.gated, self.bandwidth = repositories, gated, bandwidth
        self.requests: list[tuple[str, str]] = []
        self.moments: list[float] = []
        self.faults: list[Fault] = []
        self.merged: dict[str, str] = {}
        self.tags: set[str] = set()
        self.known: dict[tuple[str, int], tuple[str, str]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                path = unquote(self.path)
                hub.requests.append((self.command, path))
                hub.moments.append(time.monotonic())
                fault = hub.fault(f"{self.command} {path}")
                if fault and fault.kind == "silent":
                    time.sleep(fault.seconds)
                    self.close_connection = True
                elif fault and fault.kind == "status":
                    self.respond(fault.status, fault.headers, b"{}")
                else:
                    status, headers, body = hub.answer(urlparse(path).path, self.headers)
                    self.respond(status, headers, body, fault.kind if fault else None, fault.seconds if fault else 0)

            do_HEAD = do_GET

            def respond(self, status, headers, body, broken=None, seconds=0.0):
                if self.command == "HEAD" and broken in ("reset", "close"):
                    self.hang_up(broken)
                    return
                if broken == "short":
                    body = body[: len(body) // 2]
                if broken == "flip":
                    body = bytes([body[0] ^ 1]) + body[1:]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                half = len(body) // 2 if broken in ("reset", "close", "stall") else len(body)
                self.send(body[:half], throttled="X-Repo-Commit" in headers)
                if broken == "stall":
                    time.sleep(seconds)
                if broken in ("reset", "close", "stall"):
                    self.hang_up(broken)

            def hang_up(self, broken):
                if broken == "reset":  # a RST instead of a FIN
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

            def send(self, body, throttled):
                if not (throttled and hub.bandwidth):
                    self.wfile.write(body)
                    return
                chunk = max(1, int(hub.bandwidth / 50))
                for start in range(0, len(body), chunk):
                    self.wfile.write(body[start : start + chunk])
                    time.sleep(len(body[start : start + chunk]) / hub.bandwidth)

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                """A client that hangs up half-way is part of the tests; anything else is said."""
                if not isinstance(sys.exception(), OSError | ValueError):
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.met < fault.times and all(word in request for word in fault.where.split()):
                fault.met += 1
                return fault
        return None

    def fetched(self, method: str = "GET") -> list[str]:
        """Paths of the files that were asked for."""
        return [path for m, path in self.requests if m == method and "/resolve/" in path]

    def target(self, repository: str, revision: str) -> str:
        """The commit of a branch; branches in `merged` point to another one's."""
        return self.commit(repository, self.merged.get(revision, revision))

    @staticmethod
    def commit(repository: str, revision: str) -> str:
        return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()

    def answer(self, path: str, headers) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if api:
            parts = parts[2:]
        name, rest = "/".join(parts[:2]), parts[2:]
        if name not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if name in self.gated and "Authorization" not in headers:
            return 401, {"X-Error-Code": "GatedRepo"}, b"{}"
        revisions = self.repositories[name]
        if rest == ["refs"]:
            found = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
            for r in revisions:
                kind, refs = ("tags", "tags") if r in self.tags else ("branches", "heads")
                found[kind].append({"name": r, "ref": f"refs/{refs}/{r}", "targetCommit": self.target(name, r)})
            return self.json(found)
        by_commit = {self.commit(name, r): folder for r, folder in revisions.items()}
        commit = self.commit(name, rest[1]) if rest[1] in revisions else rest[1]
        folder = by_commit.get(commit)
        if folder is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if rest[0] == "revision":
            siblings = [self.entry(f, folder) for f in sorted(folder.rglob("*")) if f.is_file()]
            return self.json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        file = folder / "/".join(rest[2:])
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"{}"
        sha256, git_sha1 = self.hashes(file)
        found = {"X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
        data = file.read_bytes()
        if self.is_lfs(file):
            found |= {"ETag": '"elsewhere"', "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        else:
            found["ETag"] = f'"{git_sha1}"'
        if begin := headers.get("Range"):
            start = int(begin.removeprefix("bytes=").split("-")[0])
            return 206, {**found, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:]
        return 200, found, data

    @staticmethod
    def is_lfs(file: Path) -> bool:
        return file.suffix in (".safetensors", ".bin")

    def hashes(self, file: Path) -> tuple[str, str]:
        """sha256 of the contents and sha1 of the git blob."""
        key = (str(file), file.stat().st_mtime_ns)
        if key not in self.known:
            data = file.read_bytes()
            git_blob = hashlib.sha1(b"blob %d\0" % len(data) + data)
            self.known[key] = hashlib.sha256(data).hexdigest(), git_blob.hexdigest()
        return self.known[key]

    def entry(self, file: Path, folder: Path) -> dict:
        sha256, git_sha1 = self.hashes(file)
        size = file.stat().st_size
        found = {"rfilename": str(file.relative_to(folder)), "size": size, "blobId": git_sha1}
        if self.is_lfs(file):
            found["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
        return found

    @staticmethod
    def json(value) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
