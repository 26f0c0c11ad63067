"""A Hugging Face Hub on this machine, as far as pictish uses one: repositories, commits, large files."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

TOKEN = "hf_abcdefghijklmnopqrstuvwxyzABCDEF"


@dataclass
class Repo:
    """Commits, oldest first, each the files of the repository by name; branches name one of them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        text = repr(sorted((name, len(blob)) for name, blob in files.items())) + str(len(self.commits))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        oid = self.branches.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


@dataclass
class Hub:
    """What the server has and was asked. `fault` says of a method and a path whether to fail: with a status,
    or "cut", after half of the body."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by sha256
    requests: list[str] = field(default_factory=list)
    fault: Callable[[str, str], int | str | None] = lambda method, path: None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.failing = self.hub.fault(self.command, path)
        if isinstance(self.failing, int):
            self._json({"error": "fault"}, self.failing)
            return
        for pattern, answer in (
            (r"/api/models/([^/]+/[^/]+)", lambda body, name: self._info(body, name, "main")),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda body: self._json({})),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/large/([0-9a-f]+)", self._store),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
        ):
            if found := re.fullmatch(pattern, path):
                answer(body, *found.groups())  # type: ignore[operator]
                return
        self._json({"error": f"no such address: {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _json(self, answer: object, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(answer).encode(), status, {"Content-Type": "application/json", **headers})

    def _bytes(self, blob: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(blob)))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.failing == "cut"
            self.wfile.write(blob[: len(blob) // 2] if cut else blob)
            self.close_connection |= cut

    def _repo(self, name: str) -> Repo | None:
        """The repository, for those who may see it; else the answer is given."""
        repo = self.hub.repos.get(name)
        if repo is not None and (not repo.private or self._may()):
            return repo
        self._json({"error": "Repository not found"}, 401, **{"X-Error-Code": "RepoNotFound"})
        return None

    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self._repo(name)
        found = repo and repo.at(revision)
        if repo and found is None:
            self._json({"error": "Revision not found"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        return found

    def _info(self, body: bytes, name: str, revision: str) -> None:
        if found := self._at(name, revision):
            siblings = [{"rfilename": file} for file in found[1]]
            self._json({"id": name, "modelId": name, "sha": found[0], "siblings": siblings})

    def _tree(self, body: bytes, name: str, revision: str) -> None:
        if found := self._at(name, revision):
            files = found[1].items()
            self._json(
                [{"type": "file", "path": file, "size": len(blob), "oid": _git(blob)} for file, blob in files]
            )

    def _file(self, body: bytes, name: str, revision: str, file: str) -> None:
        if not (found := self._at(name, revision)):
            return
        if file not in found[1]:
            self._json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
            return
        blob, status = found[1][file], 200
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{_git(blob)}"'}
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(blob) - 1}/{len(blob)}"
            blob, status = blob[start:], 206
        self._bytes(blob, status, headers)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._may():
            self._json({"error": "Invalid credentials"}, 401)
            return
        new = name not in self.hub.repos
        self.hub.repos.setdefault(name, Repo(asked.get("private") or asked.get("visibility") == "private"))
        if new:
            self.hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json({"url": f"{self.hub.url}/{name}"}, 200 if new else 409)

    def _branch(self, body: bytes, name: str, branch: str) -> None:
        if repo := self._repo(name):
            repo.branches.setdefault(branch, repo.branches["main"])
            self._json({})

    def _preupload(self, body: bytes, name: str, revision: str) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": modes})

    def _batch(self, body: bytes, name: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.hub.large else {"actions": upload})})
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._json({})

    def _commit(self, body: bytes, name: str, branch: str) -> None:
        if not (found := self._at(name, branch)):
            return
        files = dict(found[1])
        for line in body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = self.hub.repos[name].commit(files, branch)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def log_message(self, format: str, *args: object) -> None:
        pass


def _git(blob: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers for as long as the block lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
