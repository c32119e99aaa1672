"""A small Hugging Face Hub on 127.0.0.1, for the real client to push to and to pull from.

Repos live in memory. Each reply closes its connection, so that a server that is stopped is gone.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

LFS = (".safetensors", ".bin", ".pt", ".ckpt", ".h5", ".onnx", ".png", ".npz")
BODY_FAULTS = ("flip", "truncate", "close", "reset")
# As the Hub says it: an expired token, terms not accepted, a file that is gone, an overload.
STATUS_FAULTS = {"401": (None, "Invalid credentials in Authorization header"),
                 "403": ("GatedRepo", "Access to model is restricted"),
                 "404": ("EntryNotFound", "Entry not found"), "503": (None, "Unavailable")}


@dataclass
class Commit:
    sha: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision):
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((commit for commits in self.branches.values() for commit in commits
                     if commit.sha == revision), None)


@dataclass
class Fault:
    suffix: str
    kind: str
    times: int
    method: str | None


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class HubError(Exception):
    """Is answered with this status and X-Error-Code."""

    def __init__(self, status, code=None, message="", headers=None, **body):
        super().__init__(message)
        named = {"X-Error-Code": code, "X-Error-Message": message or code}
        self.reply = as_json({"error": message or code, **body}, status, {
            name: value for name, value in named.items() if value} | (headers or {}))


class HubServer:
    """``with HubServer() as server``: a Hub at `server.url` that accepts `server.token`."""

    def __init__(self, token="hf_local", user="someone"):
        self.token, self.user = token, user
        self.repos, self.lfs, self.faults, self.commits = {}, {}, [], 0
        self.log, self.downloaded, self.lock = [], [], threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads, self._http.hub = True, self
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """From here on connections are refused."""
        self._http.shutdown()
        self._http.server_close()

    def clear_log(self):
        """Forgets the requests so far; a new list, so that a copy of the old `log` stays."""
        with self.lock:
            self.log, self.downloaded = [], []

    def downloads(self):
        """The repo files whose body, or a part of it, was sent; one entry for each request."""
        with self.lock:
            return list(self.downloaded)

    def files(self, repo, revision="main"):
        with self.lock:
            return dict(self.repos[repo].find(revision).files)

    def put(self, repo, files, private=False, revision="main"):
        """Commits exactly these files, with no check of any kind; the sha."""
        with self.lock:
            self.repos.setdefault(repo, Repo()).private |= private
            return self.commit(repo, revision, dict(files))

    def commit(self, repo, branch, files):
        with self.lock:
            self.commits += 1
            commit = Commit(hashlib.sha1(f"{repo} {self.commits}".encode()).hexdigest(), files)
            self.repos[repo].branches.setdefault(branch, []).append(commit)
            return commit.sha

    def fault(self, path_suffix, kind, times=1, method=None):
        """Does something wrong in the next replies to a path that ends like this.

        Args:
            path_suffix: of the path, without query and quotes.
            kind: "flip": the lowest bit of the last byte; "truncate": a complete reply, but of half
                the body; "close": half of the body that the reply announces, then the end;
                "reset": the same with a TCP reset; or a status: "401", "403", "404", "503".
            times: how many replies.
            method: of the requests; unless told, GET for faults of the body, all for a status.
                HEAD has no body: "close" and "reset" then come instead of the reply.
        """
        if kind not in (*BODY_FAULTS, *STATUS_FAULTS):
            raise ValueError(f"no such fault: {kind!r}")
        with self.lock:
            self.faults.append(Fault(path_suffix, kind, times,
                                     method or ("GET" if kind in BODY_FAULTS else None)))

    def take_fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.times and path.endswith(fault.suffix) and fault.method in (method, None):
                    fault.times -= 1
                    return fault.kind
        return None


def as_json(data, status=200, headers=None):
    return Reply(status, json.dumps(data).encode(), {"Content-Type": "application/json",
                                                     **(headers or {})})


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def blob_id(path, data):
    """What the client compares with to leave out files that have not changed."""
    return sha256(data) if path.endswith(LFS) else hashlib.sha1(
        b"blob %d\0" % len(data) + data).hexdigest()


def entry(commit, path, expand):
    """A file or folder as the listings show it."""
    data = commit.files.get(path, b"")
    found = {"type": "file" if path in commit.files else "directory", "path": path,
             "size": len(data), "oid": blob_id(path, data)}
    if found["type"] == "file" and path.endswith(LFS):
        found["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    if expand:
        found["lastCommit"] = {"id": commit.sha, "title": "", "date": "2024-01-01T00:00:00.000Z"}
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # the head and a small body in one packet, or the body may wait for an answer

    def log_message(self, *_):
        pass

    def handle_request(self):
        self.hub, (raw, _, query) = self.server.hub, self.path.partition("?")
        path, self.query, self.data = unquote(raw), parse_qs(query), self.read_body()
        with self.hub.lock:
            self.hub.log.append((self.command, path))
        fault = self.hub.take_fault(self.command, path)
        try:
            if fault in STATUS_FAULTS:
                raise HubError(int(fault), *STATUS_FAULTS[fault])
            reply = self.route(raw)
        except HubError as error:
            reply = error.reply
        self.send(reply, fault)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def route(self, raw):
        for methods, pattern, action in ROUTES:
            match = re.fullmatch(pattern, raw)
            if match and self.command in methods.split():
                with self.hub.lock:
                    return action(self, *(unquote(group or "") for group in match.groups()))
        raise HubError(404, message=f"this server has no {self.command} {raw}")

    def send(self, reply, fault):
        body, announced = reply.body, len(reply.body)
        if self.command == "HEAD" and fault in ("close", "reset"):
            return self.leave(fault)
        if fault == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        elif fault in ("truncate", "close", "reset"):
            body = body[:len(body) // 2]
            announced = len(body) if fault == "truncate" else announced
        self.send_response(reply.status)
        for name, value in (reply.headers | {"Content-Length": str(announced),
                                             "Connection": "close"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)
        self.wfile.flush()
        return self.leave(fault)

    def leave(self, fault):
        self.close_connection = True
        if fault == "reset":  # here, because http.server would say goodbye first
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def token_is_good(self):
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def repo(self, name, write=False):
        refused = 404 if "Authorization" in self.headers else 401
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.token_is_good()):
            raise HubError(refused, "RepoNotFound", "Repository not found")  # does not tell which
        if write and not self.token_is_good():
            raise HubError(403 if refused == 404 else 401, message="You may not write here")
        return repo

    def find(self, name, revision, write=False):
        repo = self.repo(name, write)
        commit = repo.branches.get(revision, [None])[-1] if write else repo.find(revision)
        if commit is None:
            raise HubError(404, "RevisionNotFound", "Invalid rev id")
        return commit

    def create(self):
        asked = json.loads(self.data)
        if not self.token_is_good():
            raise HubError(401, message="Invalid username or password.")
        name = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            raise HubError(409, message="You already created this model repo", **url)
        self.hub.put(name, {".gitattributes": b""},
                     bool(asked.get("private")) or asked.get("visibility") == "private")
        return as_json(url)

    def validate(self):
        return as_json({"errors": [], "warnings": []})

    def whoami(self):
        if not self.token_is_good():
            raise HubError(401, message="Invalid username or password.")
        return as_json({"type": "user", "name": self.hub.user, "orgs": []})

    def preupload(self, name, revision):
        files = self.find(name, revision, write=True).files
        return as_json({"files": [
            {"path": path, "uploadMode": "lfs" if path.endswith(LFS) else "regular",
             "shouldIgnore": False} | ({"oid": blob_id(path, files[path])} if path in files else {})
            for path in (file["path"] for file in json.loads(self.data)["files"])]})

    def batch(self, name):
        self.repo(name, write=True)
        objects = [{"oid": asked["oid"], "size": asked["size"]}
                   for asked in json.loads(self.data)["objects"]]
        for one in objects:
            if one["oid"] not in self.hub.lfs:
                href = {"href": f"{self.hub.url}/lfs/{one['oid']}"}
                one["actions"] = {"upload": href, "verify": href}
        return as_json({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        if self.command == "PUT" and sha256(self.data) == oid:
            self.hub.lfs[oid] = self.data
        elif self.command == "PUT" or oid not in self.hub.lfs:
            raise HubError(400, message="not the object that was announced")
        return as_json({})

    def push(self, name, branch):
        parent = self.find(name, branch, write=True)
        files = dict(parent.files)
        for line in self.data.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header" and value.get("parentCommit", parent.sha) != parent.sha:
                raise HubError(412, message="A commit has happened since. Please refresh.")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise HubError(400, message="an LFS object was not uploaded")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"], None)
            elif key == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: data for path, data in files.items() if not path.startswith(folder)}
        sha = self.hub.commit(name, branch, files)
        return as_json({"success": True, "commitOid": sha,
                        "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def branch(self, name, new):
        repo = self.repo(name, write=True)
        start = self.find(name, json.loads(self.data or b"{}").get("startingPoint", "main"))
        if new in repo.branches:
            raise HubError(409, message="Reference already exists")
        repo.branches[new] = [start]
        return as_json({})

    def resolve(self, name, revision, path):
        commit = self.find(name, revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise HubError(404, "EntryNotFound", "Entry not found", headers)
        body, status = commit.files[path], 200
        headers |= {"ETag": f'"{blob_id(path, body)}"', "Accept-Ranges": "bytes"}
        if path.endswith(LFS):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(body))}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
            if first > last:
                raise HubError(416, headers={"Content-Range": f"bytes */{len(body)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, status = body[first:last + 1], 206
        if self.command == "GET":
            self.hub.downloaded.append(path)
        return Reply(status, body, headers)

    def info(self, name, revision=""):
        commit = self.find(name, revision or "main")
        return as_json({"id": name, "sha": commit.sha, "private": self.repo(name).private,
                        "siblings": [{"rfilename": path} for path in sorted(commit.files)]})

    def tree(self, name, revision, folder):
        commit, paths = self.find(name, revision), set()
        recursive, expand = (self.query.get(key, ["false"])[0].lower() in ("true", "1")
                             for key in ("recursive", "expand"))
        inside = f"{folder}/" if folder else ""
        first = inside.count("/") + 1
        for parts in (path.split("/") for path in commit.files if path.startswith(inside)):
            last = len(parts) if recursive else first
            paths |= {"/".join(parts[:end]) for end in range(first, last + 1)}
        if folder and not paths:
            raise HubError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.sha})
        return as_json([entry(commit, path, expand) for path in sorted(paths)])

    def paths_info(self, name, revision):
        commit = self.find(name, revision)
        is_json = "json" in self.headers.get("Content-Type", "")
        asked = json.loads(self.data) if is_json else parse_qs(self.data.decode())
        expand = asked.get("expand") in (True, ["True"], ["true"])
        return as_json([entry(commit, path, expand) for path in asked.get("paths", []) if any(
            file == path or file.startswith(f"{path}/") for file in commit.files)])


_MODEL = "/api/models/([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", f"{_MODEL}/preupload/([^/]+)", _Handler.preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT POST", "/lfs/([^/]+)", _Handler.upload),
    ("POST", f"{_MODEL}/commit/([^/]+)", _Handler.push),
    ("POST", f"{_MODEL}/branch/([^/]+)", _Handler.branch),
    ("POST", f"{_MODEL}/paths-info/([^/]+)", _Handler.paths_info),
    ("GET HEAD", "/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET", _MODEL, _Handler.info),
    ("GET", f"{_MODEL}/revision/([^/]+)", _Handler.info),
    ("GET", f"{_MODEL}/tree/([^/]+)/?(.*)", _Handler.tree),
]


def client_environment(server, cache_dir):
    """The environment of a subprocess whose client uses the server, with no token."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    return kept | {
        "HF_ENDPOINT": server.url, "HF_HOME": str(cache_dir), "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(Path(cache_dir, "hub")), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@contextmanager
def use_server(monkeypatch, server, cache_dir):
    """Inside, the client of this process uses the server, with no token unless given one."""
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    # A session keeps the offline mode that it was made in.
    close_sessions = getattr(_http, "close_session", None) or _http.reset_sessions
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    with monkeypatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1")
        for name, value in {
                "ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template,
                "HF_HOME": str(cache_dir), "HF_HUB_CACHE": str(Path(cache_dir, "hub")),
                "HF_TOKEN_PATH": str(Path(cache_dir, "token")), "HF_HUB_OFFLINE": False,
                "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}.items():
            patch.setattr(constants, name, value)
        if hasattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE"):  # until 0.36
            patch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(hf_api.api, "endpoint", server.url)  # of the functions without an HfApi
        close_sessions()
        try:
            yield server
        finally:
            close_sessions()
