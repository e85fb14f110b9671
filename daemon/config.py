"""``ddct.toml``: every key, its type and its default. Unknown keys are refused.

::

    [watch]
    path = "runs"                 # required: the directory that checkpoints appear in
    settle_seconds = 10           # a checkpoint must not change for so long
    plain_settle_seconds = 60     # the same for model directories that have no end marker
    rescan_seconds = 30           # a full listing at least so often, whatever the OS reports
    events = true                 # false: listings alone, for file systems that report nothing

    [base]
    path = "models/base"          # required: what the checkpoints were fine-tuned from
    repo = "owner/base"           # where readers may find it: a hint in archives and model cards
    others = ["models/large"]     # more bases: each checkpoint's is found by its tensors
    chain = 3                     # pack a checkpoint against the one published before, in chains of at most so many
                                  # links to the base (0 to 16); by default 0: all against the base. Needs room for a
                                  # decoded model in the state directory

    [pack]
    preset = "balanced"
    device = "cpu"
    threads = 1                   # CPU threads of a pack
    nice = 10                     # its scheduling priority, 0 (normal) to 19 (last); its disk priority is idle
    memory_megabytes = 8000       # a pack that needs more fails; by default there is no limit
    gpu_memory_megabytes = 2000   # with device = "cuda": a pack takes no more of each GPU; by default there is no limit
    training_state = true         # carry optimizer state and the like, too; by default it is left out

    [hub]
    path = "hub"                  # required: either path, a directory, or url
    url = "hf://owner/my-run"     # or file:///path, or s3://bucket/prefix
    name = "my-run"               # checkpoints are published as my-run/checkpoint-10; by default as checkpoint-10
    endpoint = "https://..."      # of services other than huggingface.co and Amazon's
    token_file = "token"          # for hf://; readable by its owner only. By default what `hf auth login` stored
    public = false                # whether a repository may be visible to everybody
    layout = "folders"            # or "tags": how hf:// keeps checkpoints; by default as the repository does already

    [state]
    path = "ddct-state"           # required: the daemon's own directory, made if it is not there
    stop_seconds = 20             # on SIGTERM, running work may take so long to end
    reserve_megabytes = 500       # no pack begins while less is free on the state's disk

    [status]
    port = 9480                   # read-only page on 127.0.0.1; by default there is none
    metrics = "ddct.prom"         # file for Prometheus' textfile collector; by default there is none

    [retention]                   # without this section nothing of yours is ever removed
    keep_last = 3                 # required: newest checkpoints of each run that stay
    keep_every = 1000             # steps that stay for good; by default none do. The Trainer's best always stays
    dry_run = true                # only log what would be removed

Relative paths are relative to the directory of the configuration file.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddct_format.errors import ConfigError, HubError
from ddct_format.hub import HubOptions, check_name

from .retention import RetentionPolicy

__all__ = ["Config", "load_config"]

_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration; paths are absolute, durations are seconds."""

    watch_path: Path
    settle_seconds: float
    plain_settle_seconds: float
    rescan_seconds: float
    base_path: Path
    preset: str
    device: str
    threads: int
    nice: int
    hub: str
    hub_name: str
    hub_options: HubOptions
    base_repo: str
    state_path: Path
    stop_seconds: float
    events: bool = True
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    reserve_bytes: int = 500_000_000
    status_port: int | None = None
    metrics_path: Path | None = None
    other_bases: tuple[Path, ...] = ()
    retention: RetentionPolicy | None = None
    chain: int = 0
    training_state: bool = False


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, has an unknown key, lacks a required one
            or has a value of the wrong kind. ``place`` is the file; the reason names the key.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError((error.strerror or str(error)).lower(), place=file) from error
    if len(raw) > _MAX_CONFIG_BYTES:
        raise ConfigError(f"larger than {_MAX_CONFIG_BYTES} bytes", place=file)
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid TOML: {error}", place=file) from error
    try:
        return _build(document, file.absolute().parent)
    except ConfigError as error:
        raise error.at(place=file) from None


def _build(document: dict[str, object], directory: Path) -> Config:
    unknown = sorted(set(document) - {"watch", "base", "pack", "hub", "state", "status", "retention"})
    if unknown:
        raise ConfigError(f"unknown section [{unknown[0]}]")
    watch = _Section(document, "watch", ("path", "settle_seconds", "plain_settle_seconds", "rescan_seconds", "events"))
    base = _Section(document, "base", ("path", "repo", "others", "chain"))
    pack = _Section(
        document,
        "pack",
        ("preset", "device", "threads", "nice", "memory_megabytes", "gpu_memory_megabytes", "training_state"),
    )
    hub = _Section(document, "hub", ("path", "url", "name", "endpoint", "token_file", "public", "layout"))
    state = _Section(document, "state", ("path", "stop_seconds", "reserve_megabytes"))
    status = _Section(document, "status", ("port", "metrics"))
    return Config(
        watch_path=directory / watch.text("path"),
        settle_seconds=watch.seconds("settle_seconds", 10.0),
        plain_settle_seconds=watch.seconds("plain_settle_seconds", 60.0),
        rescan_seconds=watch.seconds("rescan_seconds", 30.0, least=0.05),
        base_path=directory / base.text("path"),
        preset=pack.text("preset", "balanced"),
        device=pack.text("device", "cpu"),
        threads=pack.integer("threads", 1, 1, 1024),
        nice=pack.integer("nice", 10, 0, 19),
        hub=_hub_location(hub, directory),
        hub_name=_hub_name(hub),
        hub_options=HubOptions(
            endpoint=hub.text("endpoint") if hub.has("endpoint") else None,
            token_file=str(directory / hub.text("token_file")) if hub.has("token_file") else None,
            public=hub.boolean("public", False),
            layout=_layout(hub),
        ),
        base_repo=base.text("repo") if base.has("repo") else "",
        state_path=directory / state.text("path"),
        stop_seconds=state.seconds("stop_seconds", 20.0),
        events=watch.boolean("events", True),
        memory_bytes=pack.integer("memory_megabytes", 0, 0, 1 << 32) * 1_000_000,
        gpu_memory_bytes=pack.integer("gpu_memory_megabytes", 0, 0, 1 << 32) * 1_000_000,
        reserve_bytes=state.integer("reserve_megabytes", 500, 0, 1 << 32) * 1_000_000,
        status_port=status.integer("port", 0, 0, 65535) if status.has("port") else None,
        other_bases=tuple(directory / other for other in base.texts("others")),
        retention=_retention(document),
        chain=base.integer("chain", 0, 0, 16),
        training_state=pack.boolean("training_state", False),
        metrics_path=directory / status.text("metrics") if status.has("metrics") else None,
    )


def _retention(document: dict[str, object]) -> RetentionPolicy | None:
    section = _Section(document, "retention", ("keep_last", "keep_every", "dry_run"))
    if "retention" not in document:
        return None
    if not section.has("keep_last"):
        raise ConfigError("[retention] keep_last: is required")
    return RetentionPolicy(
        keep_last=section.integer("keep_last", 1, 1, 1 << 32),
        keep_every=section.integer("keep_every", 0, 0, 1 << 32),
        dry_run=section.boolean("dry_run", True),
    )


def _hub_location(hub: _Section, directory: Path) -> str:
    if hub.has("path") == hub.has("url"):
        raise ConfigError("[hub] needs either path or url")
    return str(directory / hub.text("path")) if hub.has("path") else hub.text("url")


def _layout(hub: _Section) -> Literal["folders", "tags"] | None:
    if not hub.has("layout"):
        return None
    layouts: dict[str, Literal["folders", "tags"]] = {"folders": "folders", "tags": "tags"}
    if hub.text("layout") not in layouts:
        raise ConfigError('[hub] layout: must be "folders" or "tags"')
    return layouts[hub.text("layout")]


def _hub_name(hub: _Section) -> str:
    if not hub.has("name"):
        return ""
    try:
        return check_name(hub.text("name"))
    except HubError as error:
        raise ConfigError(f"[hub] name: {error.reason}") from error


class _Section:
    """One table of the document, with checked access to its keys."""

    def __init__(self, document: dict[str, object], name: str, known: Iterable[str]) -> None:
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"[{name}] must be a section")
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise ConfigError(f"unknown key {unknown[0]!r} in [{name}]")
        self._name = name
        self._table: dict[str, object] = table

    def has(self, key: str) -> bool:
        return key in self._table

    def text(self, key: str, default: str | None = None) -> str:
        value = self._table.get(key, default)
        if value is None:
            raise self._wrong(key, "is required")
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self._wrong(key, "must be a text of printable characters")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) and text.isprintable() for text in value):
            raise self._wrong(key, "must be a list of texts")
        return value

    def seconds(self, key: str, default: float, *, least: float = 0.0) -> float:
        value = self._table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "must be a number of seconds")
        if not least <= value <= 86400:
            raise self._wrong(key, f"must be in {least:g} to 86400 seconds")
        return float(value)

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        value = self._table.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(key, f"must be a whole number in {least} to {most}")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self._table.get(key, default)
        if type(value) is not bool:
            raise self._wrong(key, "must be true or false")
        return value

    def _wrong(self, key: str, reason: str) -> ConfigError:
        return ConfigError(f"[{self._name}] {key}: {reason}")
