"""A loopback server that speaks the Hub's protocol to the unmodified clients."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


class Hub:
    """Repositories as {name: {revision: folder}}; `gated` names refuse with 401 until a token comes."""

    def __init__(self, repositories: dict[str, dict[str, Path]], gated: tuple[str, ...] = ()) -> None:
        self.repositories, self.gated = repositories, gated
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                hub.requests.append((self.command, self.path))
                status, headers, body = hub.answer(urlparse(unquote(self.path)).path, self.headers)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

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
            branches = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": self.commit(name, r)} for r in revisions]
            return self.json({"branches": branches, "tags": [], "converts": [], "pullRequests": []})
        by_commit = {self.commit(name, r): folder for r, folder in revisions.items()}
        folder = revisions.get(rest[1]) or by_commit.get(rest[1])
        if folder is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        commit = next(c for c, f in by_commit.items() if f == folder)
        if rest[0] == "revision":
            siblings = [{"rfilename": f.name} for f in sorted(folder.iterdir())]
            return self.json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        if rest[0] == "tree":
            files = [self.entry(f) for f in sorted(folder.iterdir())]
            return self.json(files)
        file = folder / "/".join(rest[2:])
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"{}"
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Content-Type": "application/octet-stream"}, data

    @staticmethod
    def entry(file: Path) -> dict:
        data = file.read_bytes()
        found = {"type": "file", "path": file.name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if file.suffix in (".safetensors", ".bin"):
            found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return found

    @staticmethod
    def json(value) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
