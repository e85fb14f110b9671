"""What every hub promises (ddct_format.hub.interface), tried on each kind of hub."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest
from hub_objects import MakeObject

from ddct_format.errors import HubError
from ddct_format.hub import Hub, HubOptions, open_hub
from ddct_format.hub.fetch import fetch_archive

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


@pytest.fixture(params=["directory", "hf-lfs", "hf-xet", "hf-weak", "hf-tags", "s3", "s3-weak", "s3rver"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Hub:
    kind = request.param
    if kind == "directory":
        (tmp_path / "hub").mkdir()
        return open_hub(str(tmp_path / "hub"))
    server = request.getfixturevalue("hf_lfs" if kind == "hf-tags" else kind.replace("-", "_"))
    unique = secrets.token_hex(8)
    if kind.startswith("s3"):
        return open_hub(f"s3://bucket/{kind}/{unique}", HubOptions(endpoint=server))
    layout = "tags" if kind == "hf-tags" else None
    return open_hub(f"hf://acme/{unique}", HubOptions(server.url, str(server.token_file), layout=layout))


def test_an_archive_comes_back_as_it_was_put(hub: Hub, make_object: MakeObject, tmp_path: Path) -> None:
    thing = make_object(b"archive" * 500_000)
    pointer = thing.pointer()
    assert hub.get_pointer("run/checkpoint-1") is None
    assert not hub.has_archive("run/checkpoint-1", pointer)
    hub.put_archive("run/checkpoint-1", pointer, thing.path)
    assert hub.get_pointer("run/checkpoint-1") == pointer
    assert hub.has_archive("run/checkpoint-1", pointer)
    assert fetch_archive(hub, "run/checkpoint-1", pointer, tmp_path / "fetched") == thing.size
    assert (tmp_path / "fetched").read_bytes() == thing.path.read_bytes()


def test_reading_starts_where_it_is_told_to(hub: Hub, make_object: MakeObject) -> None:
    thing = make_object(bytes(range(256)) * 4000)
    hub.put_archive("run", thing.pointer(), thing.path)
    for offset in (1, 700_001, thing.size - 1):
        assert b"".join(hub.read_archive("run", thing.pointer(), offset)) == thing.path.read_bytes()[offset:]


def test_fetching_goes_on_from_what_is_there(hub: Hub, make_object: MakeObject, tmp_path: Path) -> None:
    thing = make_object(b"archive" * 10_000)
    hub.put_archive("run", thing.pointer(), thing.path)
    (tmp_path / "part").write_bytes(thing.path.read_bytes()[:60_000])
    assert fetch_archive(hub, "run", thing.pointer(), tmp_path / "part") == 10_000
    assert (tmp_path / "part").read_bytes() == thing.path.read_bytes()


@pytest.mark.parametrize("rubbish", [b"x" * 60_000, b"x" * 70_000, b"x" * 80_000])
def test_fetching_on_from_other_bytes_starts_again(
    hub: Hub, make_object: MakeObject, tmp_path: Path, rubbish: bytes
) -> None:
    thing = make_object(b"archive" * 10_000)
    hub.put_archive("run", thing.pointer(), thing.path)
    (tmp_path / "part").write_bytes(rubbish)
    fetch_archive(hub, "run", thing.pointer(), tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == thing.path.read_bytes()


def test_putting_twice_is_as_good_as_once(hub: Hub, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    hub.put_archive("run", thing.pointer(), thing.path)
    hub.put_archive("run", thing.pointer(), thing.path)
    assert hub.has_archive("run", thing.pointer())


def test_two_names_may_stand_for_the_same_bytes(hub: Hub, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    for name in ("run/checkpoint-1", "run/best"):
        hub.put_archive(name, thing.pointer(), thing.path)
    hub.remove("run/checkpoint-1")
    assert hub.list_names() == ("run/best",)
    assert b"".join(hub.read_archive("run/best", thing.pointer(), 0)) == b"archive"


@pytest.mark.parametrize("change", ["other bytes", "shorter", "longer"])
def test_a_file_that_is_not_what_its_pointer_says_never_appears(hub: Hub, make_object: MakeObject, change: str) -> None:
    thing = make_object(b"archive")
    thing.path.write_bytes({"other bytes": b"ARCHIVE", "shorter": b"archiv", "longer": b"archives"}[change])
    with pytest.raises(HubError, match="sha256"):
        hub.put_archive("run", thing.pointer(), thing.path)
    assert hub.get_pointer("run") is None
    assert not hub.has_archive("run", thing.pointer())
    assert hub.remove_leftovers() == 0


def test_an_archive_that_is_not_there_cannot_be_fetched(hub: Hub, make_object: MakeObject, tmp_path: Path) -> None:
    with pytest.raises(HubError):
        fetch_archive(hub, "run", make_object(b"archive").pointer(), tmp_path / "fetched")


def test_fetching_with_another_size_is_refused(hub: Hub, make_object: MakeObject, tmp_path: Path) -> None:
    thing = make_object(b"archive")
    hub.put_archive("run", thing.pointer(), thing.path)
    for size in (thing.size - 1, thing.size + 1):
        with pytest.raises(HubError):
            fetch_archive(hub, "run", replace(thing.pointer(), size=size), tmp_path / f"fetched-{size}")


@pytest.mark.parametrize("sha256", ["", "0" * 63, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
def test_a_digest_must_be_a_sha256(hub: Hub, make_object: MakeObject, sha256: str) -> None:
    thing = make_object(b"archive")
    with pytest.raises(HubError):
        hub.put_archive("run", replace(thing.pointer(), sha256=sha256), thing.path)


def test_a_name_is_replaced(hub: Hub, make_object: MakeObject) -> None:
    first, second = make_object(b"first"), make_object(b"second")
    for thing, content in ((first, "1"), (second, "2")):
        hub.put_archive("run/checkpoint-1", thing.pointer(content), thing.path)
        assert hub.get_pointer("run/checkpoint-1") == thing.pointer(content)
        assert b"".join(hub.read_archive("run/checkpoint-1", thing.pointer(content), 0)) == thing.path.read_bytes()


def test_names_are_listed_in_order_whatever_their_depth_and_removed_alone(
    hub: Hub, make_object: MakeObject, request: pytest.FixtureRequest
) -> None:
    thing = make_object(b"archive")
    assert hub.list_names() == ()
    names = ("other.model_1-x", "run", "run/checkpoint-2", "run/checkpoint-2/b")
    if "hf-tags" in request.node.name:  # git's tags cannot lie in one another
        names = ("other.model_1-x", "run", "runs/checkpoint-2", "runs/checkpoint-3/b")
    for name in reversed(names):
        hub.put_archive(name, thing.pointer(), thing.path)
    assert hub.list_names() == names
    for _ in range(2):
        hub.remove(names[2])
        assert hub.list_names() == (*names[:2], names[3])
    assert b"".join(hub.read_archive(names[3], thing.pointer(), 0)) == b"archive"


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_could_mean_something_else_is_refused(hub: Hub, make_object: MakeObject, name: str) -> None:
    thing = make_object(b"archive")
    for use in (
        lambda: hub.put_archive(name, thing.pointer(), thing.path),
        lambda: hub.get_pointer(name),
        lambda: hub.has_archive(name, thing.pointer()),
        lambda: list(hub.read_archive(name, thing.pointer(), 0)),
        lambda: hub.remove(name),
    ):
        with pytest.raises(HubError):
            use()
    assert hub.list_names() == ()


def test_a_quiet_hub_has_no_leftovers(hub: Hub, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    hub.put_archive("run", thing.pointer(), thing.path)
    assert hub.remove_leftovers() == 0
    assert hub.has_archive("run", thing.pointer())
