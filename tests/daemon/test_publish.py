"""Names of checkpoints as names in the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddct_daemon.config import Config
from ddct_daemon.publish import published_name
from ddct_format.errors import HubError

CONFIG = Config(Path("w"), 1, 1, 1, Path("b"), "paper", "cpu", 1, 0, "hub", "team/run", Path("s"), 1)


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
