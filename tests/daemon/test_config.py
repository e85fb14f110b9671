"""ddct.toml is checked to the last key."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddct_daemon.config import load_config
from ddct_daemon.retention import RetentionPolicy
from ddct_format.errors import ConfigError
from ddct_format.hub import HubOptions

MINIMAL = """
[watch]
path = "runs"
[base]
path = "base"
[hub]
path = "hub"
name = "my-run"
[state]
path = "state"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ddct.toml"
    path.write_text(text)
    return path


def test_a_minimal_file_has_defaults_for_the_rest(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert (config.preset, config.device, config.threads, config.nice) == ("balanced", "cpu", 1, 10)
    assert (config.settle_seconds, config.plain_settle_seconds, config.rescan_seconds) == (10, 60, 30)
    assert config.stop_seconds == 20


def test_relative_paths_start_at_the_file_and_absolute_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    config = load_config(write(tmp_path, MINIMAL.replace('"base"', '"/models/base"')))
    assert config.watch_path == tmp_path / "runs"
    assert config.base_path == Path("/models/base")
    assert config.hub == str(tmp_path / "hub")


def test_a_hub_may_be_a_url(tmp_path: Path) -> None:
    text = MINIMAL.replace('path = "hub"', 'url = "file:///srv/hub"')
    assert load_config(write(tmp_path, text)).hub == "file:///srv/hub"


def test_how_to_reach_a_hub_is_kept_apart_from_where_it_is(tmp_path: Path) -> None:
    text = MINIMAL.replace('path = "hub"', 'url = "hf://acme/run"\nendpoint = "http://x"\ntoken_file = "token"')
    config = load_config(write(tmp_path, text.replace('name = "my-run"', "public = true\nlayout = 'tags'")))
    assert (config.hub, config.hub_name) == ("hf://acme/run", "")
    assert config.hub_options == HubOptions("http://x", str(tmp_path / "token"), public=True, layout="tags")


def test_what_could_hurt_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert config.retention is None
    assert config.status_port is None
    assert config.hub_options.public is False
    asked = load_config(write(tmp_path, MINIMAL + "[retention]\nkeep_last = 2\n"))
    assert asked.retention == RetentionPolicy(keep_last=2, keep_every=0, dry_run=True)


def test_every_key_is_taken(tmp_path: Path) -> None:
    text = MINIMAL.replace("[base]", "settle_seconds = 0.5\nplain_settle_seconds = 2\nrescan_seconds = 3\n[base]")
    text += 'stop_seconds = 0\n[pack]\npreset = "paper-mix"\ndevice = "reference"\nthreads = 2\nnice = 19\n'
    text += "gpu_memory_megabytes = 1500\n"
    config = load_config(write(tmp_path, text))
    assert (config.settle_seconds, config.plain_settle_seconds, config.rescan_seconds) == (0.5, 2, 3)
    assert (config.preset, config.device, config.threads, config.nice) == ("paper-mix", "reference", 2, 19)
    assert config.stop_seconds == 0
    assert config.gpu_memory_bytes == 1_500_000_000


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[watch]", "[watch]\nsetle_seconds = 1", r"unknown key 'setle_seconds' in \[watch\]"),
        ("[state]", "[stat]", r"unknown section \[stat\]"),
        ('path = "runs"', "", r"\[watch\] path: is required"),
        ('path = "base"', "", r"\[base\] path: is required"),
        ('path = "state"', "", r"\[state\] path: is required"),
        ('name = "my-run"', 'layout = "heaps"', r'\[hub\] layout: must be "folders" or "tags"'),
        ('name = "my-run"', 'name = "my-run"\npublic = 1', r"\[hub\] public: must be true or false"),
        ('path = "hub"', "", r"\[hub\] needs either path or url"),
        ('path = "hub"', 'path = "hub"\nurl = "file:///x"', r"\[hub\] needs either path or url"),
        ('name = "my-run"', 'name = "../up"', r"\[hub\] name: .*'\.\.'"),
        ('path = "runs"', "path = 5", r"\[watch\] path: must be a text"),
        ('path = "runs"', 'path = ""', r"\[watch\] path: must be a text"),
        ('path = "runs"', 'path = "a\\u0000b"', r"\[watch\] path: must be a text"),
        ("[base]", "settle_seconds = -1\n[base]", r"\[watch\] settle_seconds: must be in 0"),
        ("[base]", "settle_seconds = true\n[base]", r"\[watch\] settle_seconds: must be a number"),
        ("[base]", "settle_seconds = nan\n[base]", r"\[watch\] settle_seconds: must be a number"),
        ("[base]", 'settle_seconds = "1"\n[base]', r"\[watch\] settle_seconds: must be a number"),
        ("[base]", "rescan_seconds = 0\n[base]", r"\[watch\] rescan_seconds: must be in 0\.05"),
        ("[base]", "[pack]\nthreads = 0\n[base]", r"\[pack\] threads: must be a whole number"),
        ("[base]", "[pack]\nnice = 1.5\n[base]", r"\[pack\] nice: must be a whole number"),
        ("[base]", "[pack]\nmemory_megabytes = -1\n[base]", r"\[pack\] memory_megabytes: must be a whole"),
        ("[base]", "[status]\nport = 70000\n[base]", r"\[status\] port: must be a whole number"),
        ("[base]", "[retention]\nkeep_every = 5\n[base]", r"\[retention\] keep_last: is required"),
        ("[base]", "[retention]\nkeep_last = 0\n[base]", r"\[retention\] keep_last: must be a whole number"),
        ("[base]", "[base]\nothers = 5", r"\[base\] others: must be a list of texts"),
        ("[base]", "[base]\nothers = [5]", r"\[base\] others: must be a list of texts"),
        ("[watch]", "watch = 5\n[x]", r"unknown section|must be a section"),
        ("[watch]", "[watch", "not valid TOML"),
    ],
)
def test_an_error_names_the_file_and_the_key(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in MINIMAL
    path = write(tmp_path, MINIMAL.replace(old, new, 1))
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(path)
    assert caught.value.place == str(path)


def test_a_section_must_be_a_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[pack\] must be a section"):
        load_config(write(tmp_path, "pack = 5\n" + MINIMAL))


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"a = [" * 5000, b"#" * (2 << 20)])
def test_what_is_no_text_of_a_sensible_size_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "ddct.toml").write_bytes(raw)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "ddct.toml")


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "ddct.toml")
