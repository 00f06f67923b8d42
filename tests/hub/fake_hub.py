"""
A server that speaks as much of the Hub's API as pushing and loading a model takes, over real HTTP.

It keeps repositories in memory. A call can be made to fail, see [`FakeHub.fail`]; a request that carries no token of the
server's is refused, as the Hub does it.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlparse

TOKEN = "hf_" + "KnownSecretToken" * 2


class Call(NamedTuple):
    method: str
    path: str


class FakeHub:
    """
    Args:
        lfs (`bool`, *optional*): Whether weights go through LFS instead of in the commit.
    """

    def __init__(self, lfs: bool = False):
        self.lfs = lfs
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, str]] = []
        self.calls: list[Call] = []
        self.blobs: dict[str, bytes] = {}
        self.refused = 0
        self._failures: list[tuple[str, object, int]] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fail(self, path: str, how: int | str, times: int = 10**6) -> None:
        """Answer calls whose `METHOD path` matches with a status, or `drop` their connection."""
        self._failures.append((path, how, times))

    def mend(self) -> None:
        self._failures.clear()

    def failure(self, call: Call) -> int | str | None:
        for place, (pattern, how, times) in enumerate(self._failures):
            if times and re.search(pattern, f"{call.method} {call.path}"):
                self._failures[place] = (pattern, how, times - 1)
                return how
        return None

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def all_bytes(self) -> bytes:
        return b"\0".join(content for files in self.repos.values() for content in files.values())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = Call(self.command, unquote(urlparse(self.path).path))
        self.hub.calls.append(call)
        how = self.hub.failure(call)
        if how == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(how, int):
            # A server that quotes what it was sent, to see that nothing of it gets into a message.
            self.answer({"error": f"no luck with {self.headers.get('Authorization')}"}, how)
            return
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, call.path)
            if method == ("GET" if self.command == "HEAD" else self.command) and match:
                action(self, body, **{k: v for k, v in match.groupdict().items() if v is not None})
                return
        self.answer({"error": "no such call"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def answer(self, value: object, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.hub.refused += 1
        self.answer({"error": "Invalid username or password."}, 401)
        return False

    # ---- Repositories -----------------------------------------------------------------------------------------------

    def whoami(self, body: bytes) -> None:
        self.answer({"name": "me", "type": "user", "orgs": [], "auth": {}})

    def create(self, body: bytes) -> None:
        if not self.may_write():
            return
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = name in self.hub.repos
        self.hub.repos.setdefault(name, {})
        self.answer({"url": f"{self.hub.url}/{name}", "name": name}, 409 if known else 200)

    def validate(self, body: bytes) -> None:
        import yaml

        head = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        # What the Hub's own check refuses, of what such a card can hold: ids that are none.
        named = head.get("datasets") or []
        names = [head.get("base_model"), *([named] if isinstance(named, str) else named)]
        wrong = [name for name in names if name and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)]
        self.answer(
            {"errors": [{"message": f"{name} is no id"} for name in wrong], "warnings": []}, 400 if wrong else 200
        )

    def preupload(self, body: bytes, repo: str) -> None:
        files = json.loads(body)["files"]
        kept = self.hub.repos[repo]

        def mode(path: str) -> str:
            return "lfs" if self.hub.lfs and path.endswith((".safetensors", ".bin")) else "regular"

        rows = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]
        for row in rows:
            if row["path"] in kept and row["uploadMode"] == "regular":
                row["oid"] = _git_sha(kept[row["path"]])
        self.answer({"files": rows})

    def commit(self, body: bytes, repo: str) -> None:
        if not self.may_write():
            return
        files = dict(self.hub.repos[repo])
        summary = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                summary = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
        self.hub.repos[repo] = files
        self.hub.commits.append((repo, summary))
        sha = _sha(repo, files)
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        if repo not in self.hub.repos:
            self.missing("RepoNotFound")
            return
        files = self.hub.repos[repo]
        siblings = [{"rfilename": name} for name in files]
        fixed = {"private": False, "tags": [], "downloads": 0, "likes": 0}
        self.answer({"id": repo, "modelId": repo, "sha": _sha(repo, files), "siblings": siblings, **fixed})

    def tree(self, body: bytes, repo: str, revision: str, path: str = "") -> None:
        files = self.hub.repos.get(repo, {})
        rows = [
            {"type": "file", "path": name, "oid": _git_sha(content), "size": len(content)}
            for name, content in files.items()
            if name.startswith(path)
        ]
        self.answer(rows) if rows else self.missing("EntryNotFound")

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        files = self.hub.repos.get(repo)
        if files is None or path not in files:
            self.missing("RepoNotFound" if files is None else "EntryNotFound")
            return
        self.answer(files[path], X_Repo_Commit=_sha(repo, files), ETag=f'"{_git_sha(files[path])}"')

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, X_Error_Code=code)

    # ---- LFS --------------------------------------------------------------------------------------------------------

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                row["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(row)
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        self.hub.blobs[oid] = body
        self.answer({})


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha(repo: str, files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr((repo, sorted((k, _git_sha(v)) for k, v in files.items()))).encode()).hexdigest()


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_REPO}/preupload/[^/]+", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/[^/]+", _Handler.commit),
    ("GET", rf"/api/models/{_REPO}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", _Handler.tree),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]+)", _Handler.upload),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
