"""The Hugging Face Hub with a tag for each checkpoint: one commit and one tag each, whatever gets lost on the way."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from hub_objects import MakeObject, Object
from hub_servers import TOKEN, MiniHub

from ddct_format import pack
from ddct_format.errors import HubError
from ddct_format.hub import Hub, HubOptions, describe_archive, open_hub, publish
from ddct_format.hub.huggingface import HuggingFaceHub

NAME = "run/checkpoint-10"
QUIET = ["initial commit", "Keep .ddct files in large file storage", f"Publish {NAME}"]


class Place:
    """A repository of its own; a new hub object for each attempt, like a new process."""

    def __init__(self, server: MiniHub) -> None:
        self.server = server
        self.repository = f"acme/{secrets.token_hex(8)}"

    def hub(self, layout: str | None = "tags") -> Hub:
        options = HubOptions(self.server.url, str(self.server.token_file), layout=layout)  # type: ignore[arg-type]
        return open_hub(f"hf://{self.repository}", options)

    def fault(self, request: str, mode: str, **details: object) -> None:
        self.server.fault(f"{self.repository}{request}", mode, **details)

    def assert_as_after_a_quiet_run(self, thing: Object) -> None:
        found = self.server.repository(self.repository)
        assert found["titles"] == QUIET
        assert found["tags"] == {NAME: f"Publish {NAME}"}
        assert sorted(found["files"]) == [".gitattributes", "README.md", "ddct.json", "model.ddct"]
        assert found["files"]["model.ddct"] == thing.sha256


@pytest.fixture(params=["lfs", "xet", "weak"])
def place(request: pytest.FixtureRequest) -> Place:
    return Place(request.getfixturevalue(f"hf_{request.param}"))


@pytest.fixture
def lfs(hf_lfs: MiniHub) -> Place:
    return Place(hf_lfs)


@pytest.fixture
def thing(make_object: MakeObject) -> Object:
    return make_object(secrets.token_bytes(300_000))


def test_a_checkpoint_is_one_commit_and_one_tag(place: Place, thing: Object) -> None:
    for _ in range(3):
        place.hub().put_archive(NAME, thing.pointer(), thing.path)
    place.assert_as_after_a_quiet_run(thing)


def test_each_tag_keeps_its_own_archive(place: Place, make_object: MakeObject) -> None:
    things = {f"checkpoint-{step}": make_object(secrets.token_bytes(100_000)) for step in (1, 2, 3)}
    for name, thing in things.items():
        place.hub().put_archive(name, thing.pointer(), thing.path)
    reader = place.hub(layout=None)
    assert reader.list_names() == tuple(things)
    for name, thing in things.items():
        assert reader.get_pointer(name) == thing.pointer()
        assert b"".join(reader.read_archive(name, thing.pointer(), 0)) == thing.path.read_bytes()


@pytest.mark.parametrize("request_part", ["/tag/", "/commit/main", "/revision/"])
@pytest.mark.parametrize("mode", ["after", "drop", "status"])
def test_a_lost_answer_or_request_makes_no_second_commit_and_no_second_tag(
    lfs: Place, thing: Object, request_part: str, mode: str
) -> None:
    lfs.hub()._prepare_repository()  # type: ignore[attr-defined]
    lfs.fault(request_part, mode, status=500)
    for attempt in range(3):
        try:
            lfs.hub().put_archive(NAME, thing.pointer(), thing.path)
            break
        except HubError:
            assert attempt < 2
    lfs.assert_as_after_a_quiet_run(thing)


def test_a_crash_before_the_tag_is_made_good_though_others_have_committed(
    lfs: Place, thing: Object, make_object: MakeObject
) -> None:
    lfs.fault("/tag/", "status", status=500, times=1)
    with pytest.raises(HubError, match="the commit is made, its tag 'run/checkpoint-10' is not"):
        lfs.hub().put_archive(NAME, thing.pointer(), thing.path)
    other = make_object(b"somebody else's")
    lfs.hub().put_archive("run/checkpoint-11", other.pointer(), other.path)
    lfs.hub().put_archive(NAME, thing.pointer(), thing.path)
    found = lfs.server.repository(lfs.repository)
    assert found["titles"] == [*QUIET, "Publish run/checkpoint-11"]
    assert found["tags"] == {NAME: f"Publish {NAME}", "run/checkpoint-11": "Publish run/checkpoint-11"}


def test_a_hub_without_tags_says_so_and_makes_one_commit(lfs: Place, thing: Object) -> None:
    lfs.fault("/tag/", "status", status=404, times=3)
    for _ in range(3):
        with pytest.raises(HubError, match="its tag"):
            lfs.hub().put_archive(NAME, thing.pointer(), thing.path)
    assert lfs.server.repository(lfs.repository)["titles"] == QUIET


def test_what_the_publisher_published_itself_is_replaced_and_its_tag_moves(
    lfs: Place, thing: Object, make_object: MakeObject
) -> None:
    new = make_object(b"new")
    publish(lfs.hub(), NAME, thing.pointer("1"), thing.path)
    with pytest.raises(HubError, match="another model"):
        publish(lfs.hub(), NAME, new.pointer("2"), new.path)
    publish(lfs.hub(), NAME, new.pointer("2"), new.path, replaces=thing.sha256)
    assert lfs.hub().get_pointer(NAME) == new.pointer("2")


def test_a_repository_keeps_its_layout(lfs: Place, thing: Object) -> None:
    lfs.hub(layout=None).put_archive("one", thing.pointer(), thing.path)
    with pytest.raises(HubError, match="as folders, not as tags"):
        lfs.hub().put_archive("two", thing.pointer(), thing.path)
    other = Place(lfs.server)
    other.hub().put_archive("one", thing.pointer(), thing.path)
    with pytest.raises(HubError, match="as tags, not as folders"):
        other.hub(layout="folders").put_archive("two", thing.pointer(), thing.path)
    other.hub(layout=None).put_archive("two", thing.pointer(), thing.path)
    # The newest is gone from the main branch, and the older one is found all the same.
    other.hub(layout=None).remove("two")
    assert other.hub(layout=None).list_names() == ("one",)
    other.hub(layout=None).put_archive("three", thing.pointer(), thing.path)
    assert sorted(lfs.server.repository(other.repository)["tags"]) == ["one", "three"]


@pytest.mark.parametrize("name", ["main", "HEAD", "refs/heads/x", "a..b", "a/b.lock", "0" * 40])
def test_names_with_a_meaning_to_git_are_refused(lfs: Place, thing: Object, name: str) -> None:
    with pytest.raises(HubError, match="cannot be a tag"):
        lfs.hub().put_archive(name, thing.pointer(), thing.path)
    assert isinstance(lfs.hub(), HuggingFaceHub)
    assert lfs.server.repository(lfs.repository)["tags"] == {}


def test_the_commands_push_with_a_tag_and_pull_without_being_told(
    lfs: Place, model_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = model_pair
    pack(base, tuned, tmp_path / "tuned.ddct")
    hub = f"hf://{lfs.repository}"
    reach = ["--endpoint", lfs.server.url, "--token-file", lfs.server.token_file]

    def ddct(*arguments: object) -> str:
        command = [sys.executable, "-m", "ddct_format", *map(str, arguments)]
        environment = os.environ | {"HF_ENDPOINT": lfs.server.url, "HF_TOKEN": TOKEN}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ddct("push", tmp_path / "tuned.ddct", hub, NAME, "--layout", "tags", *reach)
    assert ddct("hub", "list", hub, *reach).split() == [NAME]
    assert "4 of 4" in ddct("pull", hub, NAME, tmp_path / "out", "--base", base, *reach)
    content = describe_archive(tmp_path / "tuned.ddct").content_id
    assert content in ddct("inspect", f"{hub}@run%2Fcheckpoint-10/model.ddct")
