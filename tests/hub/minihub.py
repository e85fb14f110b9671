"""A small Hugging Face Hub for tests: models only, in memory, large files on disk, on loopback.

``python minihub.py ROOT [--xet] [--weak] [--public] [--no-races]`` prints its URL in one line and serves until it
is killed. ``--xet``: uploads go to a local Xet store. ``--weak``: no tree, commits and paths-info requests, no
``oid`` in commits. ``--public``: repositories are public, whatever was asked for. ``--no-races``: parent commits are
ignored.

Requests for tests alone, without a token: ``POST /_fault`` adds a fault, a JSON object with ``match`` (regular
expression on "METHOD path"), ``mode``, ``times`` and what the mode needs:

    status  answer with ``status``, ``headers`` and ``body`` instead of doing it
    after   do it, then answer with ``status``: the answer is lost
    drop    close the connection
    cut     send half of the answer, then close the connection
    trickle send the answer in pieces of 64 kB, with ``seconds`` between them
    slow    wait ``seconds`` first

``POST /_clear`` removes all faults, ``POST /_token`` sets the one valid token; ``GET /_log`` gives the requests so far;
``GET /_repositories`` the titles of all commits and the files of the head, as digests.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import json
import re
import socket
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from minihub_repository import Repository, git_sha, xet_files

LFS_ALWAYS_BYTES = 10 * 1000 * 1000
NAME = r"[\w.-]+/[\w.-]+"


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.options = arguments
        self.root = Path(arguments.root).absolute()
        (self.root / "lfs").mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        # Another host name: the client shows its token only to the hub's own.
        self.storage_url = f"http://localhost:{self.server_address[1]}"
        self.lock = threading.RLock()
        self.token = "test-token"
        self.repositories: dict[str, Repository] = {}
        self.faults: list[dict[str, Any]] = []
        self.requests: list[str] = []

    def large_file(self, oid: str) -> Path:
        return self.root / "lfs" / oid

    def take_fault(self, request: str) -> dict[str, Any] | None:
        with self.lock:
            for fault in self.faults:
                if fault.get("times", 1) > 0 and re.search(fault["match"], request):
                    fault["times"] = fault.get("times", 1) - 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # clients that hang up are expected
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 20
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.path_only, self.query = unquote(url.path), parse_qs(url.query)
        if self.path_only.startswith("/_") and not self.path_only.startswith("/_lfs/"):
            return self.for_tests()
        with self.server.lock:
            self.server.requests.append(f"{self.command} {self.path}")
        self.fault = self.server.take_fault(f"{self.command} {self.path}") or {}
        mode = self.fault.get("mode")
        if mode == "slow":
            time.sleep(self.fault["seconds"])
        elif mode == "drop":
            self.hang_up()
            return None
        elif mode == "status":
            self.read_body()
            return self.send(self.fault["status"], self.fault.get("body", "").encode(), self.fault.get("headers", {}))
        if self.path_only.startswith("/_lfs/"):
            return self.large_files()
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.read_body()
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        return self.route()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def route(self) -> None:
        path = self.path_only
        if path == "/api/validate-yaml":
            self.read_body()
            return self.send_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create()
        if match := re.fullmatch(rf"/({NAME})\.git/info/lfs/objects/batch", path):
            return self.batch()
        raw = urlsplit(self.path).path  # in which a revision has no "/"
        if match := re.fullmatch(rf"/api/models/({NAME})(?:/([\w-]+)(?:/([^/]+)(?:/(.*))?)?)?", raw):
            revision, rest = unquote(match[3] or "main"), unquote(match[4] or "")
            return self.repository_request(match[1], match[2] or "revision", revision, rest)
        if match := re.fullmatch(rf"/({NAME})/resolve/([^/]+)/(.+)", raw):
            return self.resolve(match[1], unquote(match[2]), unquote(match[3]))
        self.read_body()
        return self.refuse(404, "", "no such request")

    def create(self) -> None:
        body = json.loads(self.read_body())
        name = f"{body.get('organization') or 'tester'}/{body['name']}"
        url = {"url": f"{self.server.url}/{name}", "name": name, "id": "x"}
        with self.server.lock:
            if name in self.server.repositories:
                return self.send_json({"error": "You already created this model repo", **url}, 409)
            private = body.get("visibility") == "private" or bool(body.get("private"))
            self.server.repositories[name] = Repository(private and not self.server.options.public)
        return self.send_json(url)

    def batch(self) -> None:
        objects = []
        for wanted in json.loads(self.read_body())["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer = {"oid": oid, "size": size, "authenticated": True}
            path = self.server.large_file(oid)
            if not (path.exists() and path.stat().st_size == size):
                address = f"{self.server.storage_url}/_lfs/{oid}?signature=secret"
                answer["actions"] = {"upload": {"href": address, "header": {}}}
            objects.append(answer)
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        return self.send_json({"transfer": "basic", "objects": objects}, headers=headers)

    def large_files(self) -> None:
        oid = self.path_only.rsplit("/", 1)[1]
        assert re.fullmatch(r"[0-9a-f]{64}", oid)
        path = self.server.large_file(oid)
        if self.headers.get("Authorization"):
            self.read_body()  # as storage behind signed addresses does: a token must not come along
            return self.send_json({"error": "two kinds of authorization"}, 400)
        if self.command != "PUT":
            return self.send_ranged(path.read_bytes(), {"ETag": f'"{oid}"'})
        temporary = path.with_name(uuid.uuid4().hex)
        try:
            data = self.read_body()
            temporary.write_bytes(data)
            if hashlib.sha256(data).hexdigest() != oid:
                return self.send_json({"error": "sha256 mismatch"}, 400)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return self.send(200, b"", {})

    def repository_request(self, name: str, request: str, revision: str, rest: str) -> None:
        if request.startswith("xet-"):
            return self.xet_token()
        repository = self.server.repositories.get(name)
        if repository is None:
            self.read_body()
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if request == "tag" and self.command == "DELETE":
            if repository.tags.pop(revision, None) is None:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return self.send_json({})
        commit = repository.resolve(revision)
        if commit is None:
            self.read_body()
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if request == "tag":
            with self.server.lock:
                problem = repository.tag(json.loads(self.read_body())["tag"], commit)
            return self.refuse(409, "", problem) if problem else self.send_json({})
        if request == "refs":
            return self.send_json({"branches": [], "converts": [], "tags": repository.tag_refs()})
        if request == "commits" and not self.server.options.weak:
            return self.send_json(repository.newest_commits())
        if request == "preupload":
            return self.preupload(repository, commit)
        if request == "commit":
            return self.commit(name, repository)
        if request == "tree" and not self.server.options.weak:
            entries = repository.listing(commit, rest, self.query.get("recursive", [""])[0].lower() in ("true", "1"))
            if rest and not entries:
                return self.refuse(404, "EntryNotFound", f"{rest} does not exist on {revision}")
            return self.send_json(entries)
        if request == "revision":
            return self.send_json(
                {
                    "_id": "1",
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "private": repository.private,
                    "tags": [],
                    "downloads": 0,
                    "siblings": [{"rfilename": path} for path in sorted(repository.commits[commit]["tree"])],
                }
            )
        self.read_body()
        return self.refuse(404, "", "no such request")

    def xet_token(self) -> None:
        if not self.server.options.xet:
            return self.refuse(404, "", "Not Found")
        store, expires = f"local://{self.server.root}/cas", int(time.time()) + 600
        headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expires)}
        return self.send_json({"accessToken": "xet", "casUrl": store, "exp": expires}, headers=headers)

    def preupload(self, repository: Repository, commit: str) -> None:
        tree = repository.commits[commit]["tree"]
        attributes = tree.get(".gitattributes", {}).get("bytes", b"").decode().splitlines()
        patterns = [line.split()[0] for line in attributes if "filter=lfs" in line]
        files = []
        for file in json.loads(self.read_body())["files"]:
            large = file["size"] > LFS_ALWAYS_BYTES or any(
                fnmatch.fnmatch(Path(file["path"]).name, pattern) for pattern in patterns
            )
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
            }
            if file["path"] in tree and not self.server.options.weak:
                stored = tree[file["path"]]
                answer["oid"] = stored["oid"] if "oid" in stored else git_sha(stored["bytes"])
            files.append(answer)
        return self.send_json({"files": files, "commitOid": commit})

    def commit(self, name: str, repository: Repository) -> None:
        lines = [json.loads(line) for line in self.read_body().splitlines() if line.strip()]
        header = lines[0]["value"]
        with self.server.lock:
            parent = header.get("parentCommit")
            if parent and parent != repository.head and not self.server.options.no_races:
                return self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
            tree = dict(repository.tree)
            for line in lines[1:]:
                problem = self.apply(tree, line["key"], line["value"])
                if problem:
                    return self.refuse(400, "", problem)
            oid = repository.commit(tree, header["summary"])
        answer = {"success": True, "commitUrl": f"{self.server.url}/{name}/commit/{oid}", "hookOutput": ""}
        return self.send_json(answer if self.server.options.weak else answer | {"commitOid": oid})

    def apply(self, tree: dict[str, Any], key: str, value: dict[str, Any]) -> str | None:
        path = value["path"]
        if key == "file":
            tree[path] = {"bytes": base64.b64decode(value["content"])}
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                return "A file with this name doesn't exist"
        else:
            oid, stored = value["oid"], self.server.large_file(value["oid"])
            in_xet = xet_files(self.server.root / "cas").get(oid) if self.server.options.xet else None
            if in_xet is not None:
                tree[path] = {"oid": oid, "size": in_xet[1], "xet": in_xet[0]}
            elif stored.exists():
                tree[path] = {"oid": oid, "size": stored.stat().st_size}
            else:
                return "LFS pointer pointed to a file that does not exist"
        return None

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        commit = repository.resolve(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev")
        stored = repository.commits[commit]["tree"].get(path)
        if stored is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        if "bytes" in stored:
            return self.send_ranged(stored["bytes"], {"ETag": f'"{git_sha(stored["bytes"])}"'})
        if "xet" in stored:
            self.rebuild(stored)
        location = f"{self.server.storage_url}/_lfs/{stored['oid']}?signature=secret"
        return self.send(302, b"", {"Location": location, "X-Linked-Size": str(stored["size"])})

    def rebuild(self, stored: dict[str, Any]) -> None:
        """The real hub serves Xet files to plain HTTP clients, too."""
        target = self.server.large_file(stored["oid"])
        if target.exists():
            return
        from huggingface_hub.file_download import xet_get
        from huggingface_hub.utils import XetFileData

        route = f"{self.server.url}/api/models/x/y/xet-read-token/main"
        xet_get(
            incomplete_path=target.with_suffix(".incomplete"),
            xet_file_data=XetFileData(file_hash=stored["xet"], refresh_route=route),
            headers={"authorization": f"Bearer {self.server.token}"},
            expected_size=stored["size"],
        )
        target.with_suffix(".incomplete").rename(target)

    def for_tests(self) -> None:
        body = self.read_body()
        with self.server.lock:
            if self.path_only == "/_fault":
                self.server.faults.append(json.loads(body))
            elif self.path_only == "/_clear":
                self.server.faults.clear()
            elif self.path_only == "/_token":
                self.server.token = json.loads(body)
            elif self.path_only == "/_log":
                return self.send_json(self.server.requests)
            elif self.path_only == "/_repositories":
                return self.send_json(
                    {
                        name: {
                            "titles": repository.titles(),
                            "private": repository.private,
                            "tags": {tag: repository.commits[oid]["title"] for tag, oid in repository.tags.items()},
                            "files": {
                                path: stored.get("oid") or hashlib.sha256(stored["bytes"]).hexdigest()
                                for path, stored in repository.tree.items()
                            },
                        }
                        for name, repository in self.server.repositories.items()
                    }
                )
        return self.send_json({})

    def read_body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return b""
        pieces = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def send_ranged(self, data: bytes, headers: dict[str, str]) -> None:
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(match[1]), int(match[2]) + 1 if match[2] else len(data)
            if begin >= len(data):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers = headers | {"Content-Range": f"bytes {begin}-{min(end, len(data)) - 1}/{len(data)}"}
            return self.send(206, data[begin:end], headers)
        return self.send(200, data, headers)

    def send_json(self, value: object, status: int = 200, *, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send_json({"error": message}, status, headers=headers)

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        mode = getattr(self, "fault", {}).get("mode")
        if mode == "after":
            status, data, headers = self.fault["status"], b"the answer was lost", {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and mode == "trickle":
            for begin in range(0, len(data), 64_000):
                self.wfile.write(data[begin : begin + 64_000])
                self.wfile.flush()
                time.sleep(self.fault["seconds"])
        elif self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if mode == "cut" else data)
        if mode == "cut":
            self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    for option in ("--xet", "--weak", "--public", "--no-races"):
        parser.add_argument(option, action="store_true")
    hub = Hub(parser.parse_args())
    print(hub.url, flush=True)
    hub.serve_forever()


if __name__ == "__main__":
    main()
