"""What the test hub stores: repositories with commits, and large files by digest."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tree = dict[str, dict[str, Any]]
"""Path to {"bytes"} or {"oid", "size"[, "xet"]}."""


def git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer_file(oid: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


@dataclass
class Repository:
    """One branch of commits, each with its whole tree."""

    private: bool
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)
    head: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.commit({".gitattributes": {"bytes": attributes}}, "initial commit")

    @property
    def tree(self) -> Tree:
        return self.commits[self.head]["tree"]

    def commit(self, tree: Tree, title: str) -> str:
        identity = json.dumps([self.head, title, time.time_ns(), sorted(tree)])
        oid = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[oid] = {"id": oid, "parent": self.head, "tree": tree, "title": title}
        self.head = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        if revision in ("main", "refs/heads/main"):
            return self.head
        return revision if revision in self.commits else self.tags.get(revision)

    def tag(self, name: str, commit: str) -> str | None:
        """Make a tag; why it cannot be, if so. Like directories and files, tags cannot lie in one another."""
        for other in self.tags:
            if other == name or other.startswith(name + "/") or name.startswith(other + "/"):
                return f"Tag {other} exists"
        self.tags[name] = commit
        return None

    def tag_refs(self) -> list[dict[str, str]]:
        return [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": commit} for tag, commit in self.tags.items()]

    def newest_commits(self) -> list[dict[str, str]]:
        """One page of them."""
        found, commit = [], self.head
        while commit and len(found) < 50:
            found.append({"id": commit, "title": self.commits[commit]["title"]})
            commit = self.commits[commit]["parent"]
        return found

    def entry(self, commit: str, path: str) -> dict[str, Any]:
        """As the tree and paths-info requests show a file."""
        stored = self.commits[commit]["tree"][path]
        if "oid" not in stored:
            data = stored["bytes"]
            return {"type": "file", "oid": git_sha(data), "size": len(data), "path": path}
        pointer = pointer_file(stored["oid"], stored["size"])
        entry = {
            "type": "file",
            "oid": git_sha(pointer),
            "size": stored["size"],
            "path": path,
            "lfs": {"oid": stored["oid"], "size": stored["size"], "pointerSize": len(pointer)},
        }
        if "xet" in stored:
            entry["xetHash"] = stored["xet"]
        return entry

    def listing(self, commit: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = folder + "/" if folder else ""
        entries, folders = [], set()
        for path in sorted(self.commits[commit]["tree"]):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                if name not in folders:
                    folders.add(name)
                    oid = hashlib.sha1(name.encode()).hexdigest()
                    entries.append({"type": "directory", "oid": oid, "size": 0, "path": name})
            if recursive or len(parts) == 1:
                entries.append(self.entry(commit, path))
        return entries

    def titles(self) -> list[str]:
        """Commit messages, oldest first."""
        found, commit = [], self.head
        while commit:
            found.append(self.commits[commit]["title"])
            commit = self.commits[commit]["parent"]
        return found[::-1]


def xet_files(root: Path) -> dict[str, tuple[str, int]]:
    """sha256 to (Xet hash, size), from the shards that hf_xet wrote into a ``local://`` store."""

    def hexadecimal(raw: bytes) -> str:
        return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))

    found = {}
    for shard in root.rglob("*.mdb"):
        raw, position = shard.read_bytes(), 48
        while position + 48 <= len(raw):
            file_hash = raw[position : position + 32]
            if file_hash == b"\xff" * 32:
                break
            flags, segments = struct.unpack("<II", raw[position + 32 : position + 40])
            position += 48
            size = sum(
                struct.unpack("<I", raw[position + 48 * i + 36 : position + 48 * i + 40])[0] for i in range(segments)
            )
            position += 48 * segments * (2 if flags & 0x80000000 else 1)
            if flags & 0x40000000:
                found[hexadecimal(raw[position : position + 32])] = (hexadecimal(file_hash), size)
                position += 48
    return found
