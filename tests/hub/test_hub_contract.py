"""What every hub promises (ddct_format.hub.interface), tried on each kind of hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_objects import MakeObject

from ddct_format.errors import HubError, OutputExistsError
from ddct_format.hub import Hub, open_hub

HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "../up",
    "a/../b",
    "/absolute",
    "a//b",
    "a/",
    ".hidden",
    "a/.hidden",
    "-option",
    "a b",
    "a\\b",
    "a\0b",
    "a\nb",
    "ä",
    "a.json",
    "a.json/b",
    "end.",
    "x" * 97,
    "/".join("x" * 9),
    "C:",
    "%2e%2e",
]


@pytest.fixture(params=["directory"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Hub:
    assert request.param == "directory"
    (tmp_path / "hub").mkdir()
    return open_hub(str(tmp_path / "hub"))


def test_an_object_comes_back_as_it_was_put(hub: Hub, make_object: MakeObject, tmp_path: Path) -> None:
    thing = make_object(b"archive" * 500_000)
    assert not hub.has_object(thing.sha256, thing.size)
    hub.put_object(thing.sha256, thing.size, thing.path)
    assert hub.has_object(thing.sha256, thing.size)
    hub.fetch_object(thing.sha256, thing.size, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == thing.path.read_bytes()


def test_putting_an_object_twice_is_as_good_as_once(hub: Hub, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    hub.put_object(thing.sha256, thing.size, thing.path)
    hub.put_object(thing.sha256, thing.size, thing.path)
    assert hub.has_object(thing.sha256, thing.size)


@pytest.mark.parametrize("change", ["other bytes", "shorter", "longer"])
def test_an_object_that_is_not_what_it_is_called_never_appears(hub: Hub, make_object: MakeObject, change: str) -> None:
    thing = make_object(b"archive")
    thing.path.write_bytes({"other bytes": b"ARCHIVE", "shorter": b"archiv", "longer": b"archives"}[change])
    with pytest.raises(HubError, match="sha256"):
        hub.put_object(thing.sha256, thing.size, thing.path)
    assert not hub.has_object(thing.sha256, thing.size)
    assert hub.remove_leftovers() == 0


def test_an_object_that_is_not_there_cannot_be_fetched(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubError):
        hub.fetch_object("0" * 64, 10, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_fetching_does_not_overwrite(hub: Hub, make_object: MakeObject, tmp_path: Path) -> None:
    thing = make_object(b"archive")
    hub.put_object(thing.sha256, thing.size, thing.path)
    (tmp_path / "mine").write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        hub.fetch_object(thing.sha256, thing.size, tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == b"precious"


def test_fetching_with_another_size_is_refused_and_leaves_nothing(
    hub: Hub, make_object: MakeObject, tmp_path: Path
) -> None:
    thing = make_object(b"archive")
    hub.put_object(thing.sha256, thing.size, thing.path)
    for size in (thing.size - 1, thing.size + 1):
        with pytest.raises(HubError):
            hub.fetch_object(thing.sha256, size, tmp_path / "fetched")
        assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("sha256", ["", "0" * 63, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
def test_an_object_key_must_be_a_sha256(hub: Hub, make_object: MakeObject, tmp_path: Path, sha256: str) -> None:
    thing = make_object(b"archive")
    for use in (
        lambda: hub.has_object(sha256, 7),
        lambda: hub.put_object(sha256, 7, thing.path),
        lambda: hub.fetch_object(sha256, 7, tmp_path / "fetched"),
    ):
        with pytest.raises(HubError):
            use()


def test_a_pointer_comes_back_and_is_replaced(hub: Hub, make_object: MakeObject) -> None:
    first, second = make_object(b"first").pointer("1"), make_object(b"second").pointer("2")
    assert hub.get_pointer("run/checkpoint-1") is None
    hub.put_pointer("run/checkpoint-1", first)
    assert hub.get_pointer("run/checkpoint-1") == first
    hub.put_pointer("run/checkpoint-1", second)
    assert hub.get_pointer("run/checkpoint-1") == second


def test_names_are_listed_in_order_whatever_their_depth(hub: Hub, make_object: MakeObject) -> None:
    pointer = make_object(b"archive").pointer()
    assert hub.list_names() == ()
    for name in ("run/checkpoint-2", "run", "other.model_1-x", "run/checkpoint-2/b"):
        hub.put_pointer(name, pointer)
    assert hub.list_names() == ("other.model_1-x", "run", "run/checkpoint-2", "run/checkpoint-2/b")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_could_mean_something_else_is_refused(hub: Hub, make_object: MakeObject, name: str) -> None:
    with pytest.raises(HubError):
        hub.put_pointer(name, make_object(b"archive").pointer())
    with pytest.raises(HubError):
        hub.get_pointer(name)
    assert hub.list_names() == ()


def test_a_quiet_hub_has_no_leftovers(hub: Hub, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    hub.put_object(thing.sha256, thing.size, thing.path)
    hub.put_pointer("run", thing.pointer())
    assert hub.remove_leftovers() == 0
    assert hub.has_object(thing.sha256, thing.size)
