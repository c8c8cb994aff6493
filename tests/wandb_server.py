"""A loopback W&B backend that speaks what the unmodified client asks for while it publishes a run.

Like the real one, it knows an artifact of the same contents again, and then the client uploads nothing.
"""

import base64
import gzip
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Run:
    """What the backend holds of one run."""

    name: str
    project: str
    group: str = ""
    display_name: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    finished: bool = False


@dataclass
class Fault:
    """The next `times` requests whose operation or path contains `where` are answered with `status`, or not at all."""

    where: str
    status: int
    times: float = float("inf")
    seconds: float = 0.0
    met: int = 0


class Wandb:
    """Runs, artifacts and views as they arrive. `key` is the only API key that is let in."""

    key = "k" * 40

    def __init__(self, *faults: Fault) -> None:
        self.faults = list(faults)
        self.views: list[dict] = []
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, dict] = {}
        self.operations: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sent = base64.b64encode(f"api:{stub.key}".encode()).decode()
                # Uploads go to signed addresses and the client's own telemetry goes out without a key.
                known = (
                    self.path.startswith(("/upload/", "/sdk/otel"))
                    or self.headers.get("Authorization") == f"Basic {sent}"
                )
                status, found = stub.answer(self.path, body) if known else (401, {"error": "user is not logged in"})
                if status == 0:
                    self.close_connection = True
                    return
                text = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = answer

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                """The client hangs up on its kept-alive connections when it ends; anything else is said."""
                if not isinstance(sys.exception(), ConnectionResetError):
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> "Wandb":
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, body: bytes) -> tuple[int, dict]:
        asked, name = {}, path
        if path == "/graphql":
            asked = json.loads(body)
            name = asked.get("operationName") or re.search(r"\w+ (\w+)", asked["query"])[1]
        for fault in self.faults:
            if fault.where in name and fault.met < fault.times:
                fault.met += 1
                time.sleep(fault.seconds)
                return fault.status, {"error": "as told"}
        if path == "/graphql":
            self.operations.append(name)
            known = getattr(self, f"graphql_{name}", None)
            return (200, {"data": known(asked.get("variables") or {})}) if known else (200, {"data": {}})
        if path.startswith("/upload/run/"):
            _, _, _, run, file = path.split("/", 4)
            self.runs[run].files[file] = body
        elif path.startswith("/upload/artifact/"):
            _, _, _, artifact, file = path.split("/", 4)
            self.artifacts[artifact]["files"][file] = body
        elif path.endswith("/file_stream"):
            self.stream(self.runs[path.split("/")[4]], json.loads(body))
        return 200, {}

    @staticmethod
    def stream(run: Run, sent: dict) -> None:
        for file, chunk in sent.get("files", {}).items():
            lines = [json.loads(line) for line in chunk["content"]]
            if file == "wandb-history.jsonl":
                run.history[chunk["offset"] :] = lines
            elif file == "wandb-summary.json":
                run.summary = lines[-1]
        run.finished = run.finished or bool(sent.get("complete"))

    def graphql_UpsertBucket(self, asked: dict) -> dict:
        if asked.get("id"):  # of a run that is there: the public client changes it
            run = self.runs[asked["id"]]
        else:
            run = self.runs.setdefault(asked["name"], Run(asked["name"], asked["project"]))
        run.group, run.job_type = asked.get("groupName") or run.group, asked.get("jobType") or run.job_type
        run.display_name, run.tags = asked.get("displayName") or run.display_name, asked.get("tags") or run.tags
        if asked.get("config"):
            run.config = {k: v["value"] for k, v in json.loads(asked["config"]).items()}
        return {"upsertBucket": {"bucket": self.bucket(run), "inserted": True}}

    @staticmethod
    def bucket(run: Run) -> dict:
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": "me"}}
        return {"id": run.name, "name": run.name, "displayName": run.display_name, "project": project,
                "historyLineCount": len(run.history), "tags": run.tags, "jobType": run.job_type, "group": run.group, "description": "", "notes": "",
                "state": "finished" if run.finished else "running", "projectId": "1",
                "config": json.dumps({k: {"value": v} for k, v in run.config.items()}),
                "summaryMetrics": json.dumps(run.summary)}  # fmt: skip

    def graphql_Run(self, asked: dict) -> dict:
        run = self.runs.get(asked["name"])
        return {"project": {"id": "p", "internalId": "1", "run": self.bucket(run) if run else None}}

    def graphql_GetProjects(self, _: dict) -> dict:
        project = {"__typename": "Project", "id": "p", "name": "sih", "entityName": "me", "createdAt": "2026-01-01",
                   "isBenchmark": False, "user": None}  # fmt: skip
        return {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": [{"node": project}]}}

    def graphql_ProjectInternalId(self, _: dict) -> dict:
        return {"project": {"id": "p", "internalId": "UHJvamVjdDox"}}

    def graphql_UpsertView(self, asked: dict) -> dict:
        self.views.append(asked)
        return {
            "upsertView": {"view": asked | {"id": "v", "project": {"name": asked["projectName"], "entityName": "me"}}}
        }

    graphql_UpsertView2 = graphql_upsertView = graphql_UpsertView  # of a workspace, of a report

    def graphql_CreateRunFiles(self, asked: dict) -> dict:
        files = [{"name": f, "uploadUrl": f"{self.url}/upload/run/{asked['run']}/{f}"} for f in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def graphql_Viewer(self, _: dict) -> dict:
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}",
                           "teams": {"edges": []}}}  # fmt: skip

    graphql_GetDefaultEntity = graphql_GetViewer = graphql_Viewer

    def graphql_ArtifactType(self, _: dict) -> dict:
        return {"project": None}

    def graphql_CreateArtifact(self, asked: dict) -> dict:
        new = asked["input"]
        for name, known in self.artifacts.items():
            if known["committed"] and (known["name"], known["digest"]) == (
                new["artifactCollectionName"],
                new["digest"],
            ):
                return {"createArtifact": {"artifact": {"id": name, "state": "COMMITTED", "artifactSequence": {}}}}
        name = f"a{len(self.artifacts)}"
        self.artifacts[name] = {
            "digest": new["digest"],
            "name": new["artifactCollectionName"],
            "type": new["artifactTypeName"],
            "committed": False,
            "files": {},
        }
        return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": {}}}}

    def graphql_CreateArtifactManifest(self, asked: dict) -> dict:
        return {"createArtifactManifest": self.manifest(asked["artifactID"])}

    def graphql_UpdateArtifactManifest(self, asked: dict) -> dict:
        return {"updateArtifactManifest": self.manifest(asked["artifactManifestID"])}

    def manifest(self, artifact: str) -> dict:
        # The manifest's id is its artifact's, so that an update finds it.
        upload = {"id": "f", "uploadUrl": f"{self.url}/upload/artifact/{artifact}/manifest", "uploadHeaders": []}
        return {"artifactManifest": {"id": artifact, "file": upload}}

    def graphql_CreateArtifactFiles(self, asked: dict) -> dict:
        nodes = [
            {
                "storagePath": file["name"],
                "uploadUrl": f"{self.url}/upload/artifact/{file['artifactID']}/{file['name']}",
                "uploadHeaders": [],
                "artifact": {"id": file["artifactID"]},
            }
            for file in asked["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def graphql_ArtifactByID(self, asked: dict) -> dict:
        found = self.artifacts[asked["id"]]
        project = {"id": "p", "internalId": "1", "name": "sih", "entity": {"id": "e", "name": "me"}}
        sequence = {"__typename": "ArtifactSequence", "id": "s", "name": found["name"], "project": project}
        return {"artifact": {
            "__typename": "Artifact", "id": asked["id"], "artifactSequence": sequence, "versionIndex": 0,
            "artifactType": {"name": found["type"]}, "description": None, "metadata": None, "ttlDurationSeconds": 0,
            "ttlIsInherited": False, "tags": [], "historyStep": None, "state": "COMMITTED", "size": 0, "digest": "d",
            "commitHash": None, "fileCount": len(found["files"]), "createdAt": "2026-01-01T00:00:00", "updatedAt": None,
            "aliases": [],
        }}  # fmt: skip

    def graphql_CommitArtifact(self, asked: dict) -> dict:
        self.artifacts[asked["artifactID"]]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": "d"}}}
