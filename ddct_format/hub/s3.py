"""S3 and stores that speak its language, through boto3 (``pip install ddct[s3]``).

Layout: that of a directory hub, below the prefix::

    objects/<first two digits of the sha256>/<sha256>.ddct
    refs/<name>.json

Nothing depends on entity tags or user metadata, which stores fill as they like: what counts is the sha256
of the bytes read back. Conditional writes are asked for; a store that ignores them loses nothing but the
protection of two publishers from each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddct_format.container.s3_client import NO_CREDENTIALS, s3_client
from ddct_format.errors import HubError
from ddct_format.hub.notes import Notes
from ddct_format.hub.options import HubOptions
from ddct_format.hub.pointer import (
    MAX_POINTER_BYTES,
    Pointer,
    check_name,
    check_sha256,
    parse_pointer,
    serialise_pointer,
)
from ddct_format.hub.token import scrub

__all__ = ["S3Hub"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"([A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*)?", re.ASCII)
_PART_BYTES = 16 << 20
_PIECE = 1 << 20
_MAX_UPLOAD_SECONDS = 24 * 3600
"""No writer is at work on one archive for so long."""
_MISSING = ("404", "NoSuchKey", "NotFound")
_FORBIDDEN = ("403", "AccessDenied", "405", "MethodNotAllowed")
_UNSUPPORTED = ("501", "NotImplemented", "InvalidArgument", "InvalidRequest")


class S3Hub:
    """The Hub protocol on a bucket, which must exist. Credentials and region come from where AWS tools look.

    Args:
        bucket, prefix: where; the prefix may be empty.
        options: ``endpoint`` for stores other than Amazon's.
    """

    def __init__(self, bucket: str, prefix: str, options: HubOptions) -> None:
        self.location = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
        if _BUCKET.fullmatch(bucket) is None or _PREFIX.fullmatch(prefix) is None:
            raise HubError("a bucket is written s3://bucket or s3://bucket/prefix", place=self.location)
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = s3_client(options.endpoint, self.location)

    def get_pointer(self, name: str) -> Pointer | None:
        return self._read_pointer(name)[0]

    def has_archive(self, name: str, pointer: Pointer) -> bool:
        check_name(name)
        return self._object_size(self._object_key(pointer)) == pointer.size

    def put_archive(self, name: str, pointer: Pointer, path: Path, notes: Notes | None = None) -> None:
        raw = serialise_pointer(pointer)
        parse_pointer(raw)
        there, condition = self._read_pointer(name)
        size = self._object_size(self._object_key(pointer))
        # What this name stood for already was read back then; what others left is not believed.
        if size != pointer.size or (there != pointer and not self._is_intact(pointer)):
            self._put_object(pointer, path, replace=size is not None)
        if there == pointer:
            return
        try:
            self._put(self._pointer_key(name), raw, condition)
        except _AlreadyThereError:
            # The client repeats a request whose answer was lost, and then meets its own work.
            if self.get_pointer(name) != pointer:
                raise

    def read_archive(self, name: str, pointer: Pointer, begin: int, end: int | None = None) -> Iterator[bytes]:
        check_name(name)
        yield from self._read(self._object_key(pointer), begin, pointer.size + 1 if end is None else end)

    def list_names(self) -> tuple[str, ...]:
        prefix, names = f"{self._prefix}refs/", []
        for page in self._pages("list_objects_v2", Prefix=prefix):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(prefix)
                with contextlib.suppress(HubError):
                    if name.endswith(".json"):
                        names.append(check_name(name.removesuffix(".json")))
        return tuple(sorted(names))

    def remove(self, name: str) -> None:
        pointer = self.get_pointer(name)
        if pointer is None:
            return
        others = (self.get_pointer(other) for other in self.list_names() if other != name)
        shared = any(other is not None and other.sha256 == pointer.sha256 for other in others)
        with self._errors():
            self._client.delete_object(Bucket=self._bucket, Key=self._pointer_key(name))
            if not shared:
                self._client.delete_object(Bucket=self._bucket, Key=self._object_key(pointer))

    def look_closer(self, name: str, pointer: Pointer) -> tuple[str, ...]:
        found = []
        try:
            self._put(self._pointer_key(name), serialise_pointer(pointer), {"IfNoneMatch": "*"})
            found.append("it ignores conditions: of two publishers of one name, the last one wins")
        except _AlreadyThereError:
            found.append("it honours conditions: two publishers of one name cannot overwrite each other unseen")
        with self._errors():
            answer = self._client.get_object(Bucket=self._bucket, Key=self._object_key(pointer), Range="bytes=0-0")
            answer["Body"].close()
        if "ContentRange" in answer:
            found.append("it honours ranges: broken downloads go on where they ended")
        else:
            found.append("it ignores ranges: a download that goes on is sent from its beginning again")
        if self._unfinished_uploads(f"{self._prefix}objects/") is None:
            found.append(
                "it does not list unfinished uploads: let a rule of the bucket remove those of interrupted writers"
            )
        return tuple(found)

    def remove_leftovers(self) -> int:
        """Abort uploads in parts that began more than a day ago: their parts cost money, and no list shows them.

        A younger one of a dead writer is aborted by the next upload of the same archive.
        """
        removed = 0
        for upload in self._unfinished_uploads(f"{self._prefix}objects/") or ():
            age = time.time() - upload["Initiated"].timestamp()
            if age > _MAX_UPLOAD_SECONDS:
                self._abort(upload)
                removed += 1
        return removed

    def _put_object(self, pointer: Pointer, path: Path, *, replace: bool) -> None:
        key = self._object_key(pointer)
        for upload in self._unfinished_uploads(key) or ():
            if upload["Key"] == key:
                self._abort(upload)
        with _open(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != pointer.sha256 or file.tell() != pointer.size:
                raise HubError("the file to publish does not have the expected size and sha256", place=path)
            file.seek(0)
            condition = {} if replace else {"IfNoneMatch": "*"}
            try:
                if pointer.size <= _PART_BYTES:
                    self._put(key, file.read(_PART_BYTES + 1), condition)
                else:
                    self._put_parts(key, file, condition)
            except _AlreadyThereError:
                pass
            except HubError:
                # The answer may be lost though all was done: what the store holds decides.
                with contextlib.suppress(HubError):
                    if self._is_intact(pointer):
                        return
                raise
        if not self._is_intact(pointer):
            with self._errors():
                self._client.delete_object(Bucket=self._bucket, Key=key)
            raise HubError("the store gave back other bytes than were sent; they were removed", place=self.location)

    def _is_intact(self, pointer: Pointer) -> bool:
        hasher = hashlib.sha256()
        for piece in self._read(self._object_key(pointer), 0, pointer.size + 1):
            hasher.update(piece)
        return hasher.hexdigest() == pointer.sha256

    def _put(self, key: str, data: bytes, condition: dict[str, str]) -> None:
        """Write a small object if the condition holds; without it where the store has no conditions."""
        arguments = {"Bucket": self._bucket, "Key": key, "Body": data}
        with self._errors():
            try:
                self._client.put_object(**arguments, **condition)
            except Exception as error:
                if not condition or _code(error) not in _UNSUPPORTED:
                    raise
                self._client.put_object(**arguments)

    def _put_parts(self, key: str, file: Any, condition: dict[str, str]) -> None:
        target = {"Bucket": self._bucket, "Key": key}
        with self._errors():
            upload = target | {"UploadId": self._client.create_multipart_upload(**target)["UploadId"]}
            try:
                parts: list[dict[str, object]] = []
                while data := file.read(_PART_BYTES):
                    number = len(parts) + 1
                    part = self._client.upload_part(**upload, PartNumber=number, Body=data)
                    parts.append({"PartNumber": number, "ETag": part["ETag"]})
                done = upload | {"MultipartUpload": {"Parts": parts}}
                try:
                    self._client.complete_multipart_upload(**done, **condition)
                except Exception as error:
                    if _code(error) in ("412", "PreconditionFailed"):
                        self._client.abort_multipart_upload(**upload)
                    elif condition and _code(error) in _UNSUPPORTED:
                        self._client.complete_multipart_upload(**done)
                    else:
                        raise
            except BaseException:
                with contextlib.suppress(Exception):
                    self._client.abort_multipart_upload(**upload)
                raise

    def _unfinished_uploads(self, prefix: str) -> list[dict[str, Any]] | None:
        """Uploads in parts that were begun; None if the store does not list them, or not to us."""
        found: list[dict[str, Any]] = []
        try:
            for page in self._pages("list_multipart_uploads", Prefix=prefix):
                found += page.get("Uploads", ())
        except HubError as error:
            if _code(error.__cause__) not in (*_UNSUPPORTED, *_FORBIDDEN):
                raise
            return None
        return found

    def _abort(self, upload: dict[str, Any]) -> None:
        with self._errors():
            try:
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            except Exception as error:
                if _code(error) != "NoSuchUpload":
                    raise

    def _read_pointer(self, name: str) -> tuple[Pointer | None, dict[str, str]]:
        """The pointer, and the condition under which it may be replaced: that it is still this one."""
        key = self._pointer_key(name)
        with self._errors():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
            except Exception as error:
                if _code(error) in _MISSING:
                    return None, {"IfNoneMatch": "*"}
                raise
            with answer["Body"] as body:
                raw = body.read(MAX_POINTER_BYTES + 1)
        try:
            return parse_pointer(raw), {"IfMatch": answer["ETag"]}
        except HubError as error:
            raise error.at(place=f"{self.location}/refs/{name}.json") from None

    def _read(self, key: str, begin: int, end: int) -> Iterator[bytes]:
        with self._errors():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={begin}-{end - 1}")
            except Exception as error:
                if _code(error) == "InvalidRange":  # there is nothing so far behind
                    return
                raise
            # A store that ignores ranges sends all, again.
            skip, limit = 0 if "ContentRange" in answer else begin, end - begin
            with contextlib.closing(answer["Body"]) as body:
                while limit > 0 and (piece := body.read(_PIECE)):
                    useful = piece[skip:][:limit]
                    skip = max(0, skip - len(piece))
                    limit -= len(useful)
                    if useful:
                        yield useful

    def _object_size(self, key: str) -> int | None:
        with self._errors():
            try:
                return int(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"])
            except Exception as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def _pages(self, request: str, **arguments: str) -> Iterator[dict[str, Any]]:
        with self._errors():
            yield from self._client.get_paginator(request).paginate(Bucket=self._bucket, **arguments)

    def _object_key(self, pointer: Pointer) -> str:
        sha256 = check_sha256(pointer.sha256)
        return f"{self._prefix}objects/{sha256[:2]}/{sha256}.ddct"

    def _pointer_key(self, name: str) -> str:
        return f"{self._prefix}refs/{check_name(name)}.json"

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what boto3 raises, which shares no base with its HTTP client's errors, into HubError."""
        try:
            yield
        except HubError:
            raise
        except Exception as error:
            if _code(error) in ("412", "PreconditionFailed"):
                raise _AlreadyThereError("somebody else published there meanwhile", place=self.location) from error
            if type(error).__name__ == "NoCredentialsError":
                raise HubError(NO_CREDENTIALS, place=self.location) from error
            pause = 60.0 if _code(error) in ("429", "503", "SlowDown", "TooManyRequests") else None
            raise HubError(scrub(str(error), None), place=self.location, retry_after=pause) from error


class _AlreadyThereError(HubError):
    """A condition did not hold."""


def _code(error: BaseException | None) -> str:
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ""
    return str(response.get("Error", {}).get("Code", ""))


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise HubError(f"cannot be read: {(error.strerror or str(error)).lower()}", place=path) from error
