"""Names of checkpoints as names in the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddct_daemon.config import Config
from ddct_daemon.jobs import published_name
from ddct_format.errors import HubError
from ddct_format.hub import HubOptions

CONFIG = Config(
    watch_path=Path("w"),
    settle_seconds=1,
    plain_settle_seconds=1,
    rescan_seconds=1,
    base_path=Path("b"),
    base_repo="",
    preset="paper",
    device="cpu",
    threads=1,
    nice=0,
    hub="hub",
    hub_name="team/run",
    hub_options=HubOptions(),
    state_path=Path("s"),
    stop_seconds=1,
)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("checkpoint-10", "team/run/checkpoint-10"),
        ("seed-1/checkpoint-10", "team/run/seed-1/checkpoint-10"),
        (".", "team/run"),
    ],
)
def test_a_checkpoint_is_published_below_the_configured_name(name: str, published: str) -> None:
    assert published_name(CONFIG, name) == published


@pytest.mark.parametrize("name", ["my model", "größe", "a\udcff", "x.json"])
def test_a_directory_whose_name_no_hub_takes_cannot_be_published(name: str) -> None:
    with pytest.raises(HubError):
        published_name(CONFIG, name)
