"""The Hugging Face Hub: layout, privacy, tokens; and faults of a real server, after which all is as in a quiet run."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_objects import MakeObject, Object
from hub_servers import TOKEN, MiniHub
from huggingface_hub import ModelCard

from ddct_format.errors import HubError
from ddct_format.hub import Hub, HubOptions, Notes, open_hub
from ddct_format.hub.fetch import fetch_archive
from ddct_format.hub.model_card import forget_checkpoint, update_card
from ddct_format.hub.pointer import serialise_pointer

NOTES = Notes(original_size=100_000_000, bits_per_weight=0.512, preset="paper", error=0.1234, base_repo="acme/base")
NAME = "checkpoint-10"
TITLES = ["initial commit", "Keep .ddct files in large file storage", f"Publish {NAME}"]


class Place:
    """A repository of its own on a server, and what a quiet run leaves there."""

    def __init__(self, server: MiniHub) -> None:
        self.server = server
        self.repository = f"acme/{secrets.token_hex(8)}"

    def hub(self, **changes: object) -> Hub:
        options = HubOptions(endpoint=self.server.url, token_file=str(self.server.token_file))
        return open_hub(f"hf://{self.repository}", replace(options, **changes))

    def fault(self, request: str, mode: str, **details: object) -> None:
        """``request``: regular expression for what follows the repository's name."""
        self.server.fault(f"{self.repository}{request}", mode, **details)

    def assert_published_once(self, thing: Object) -> None:
        found = self.server.repository(self.repository)
        assert found["titles"] == TITLES
        assert sorted(found["files"]) == [".gitattributes", "README.md", f"{NAME}/ddct.json", f"{NAME}/model.ddct"]
        assert found["files"][f"{NAME}/model.ddct"] == thing.sha256
        assert found["files"][f"{NAME}/ddct.json"] == hashlib.sha256(serialise_pointer(thing.pointer())).hexdigest()


@pytest.fixture(params=["lfs", "xet"])
def place(request: pytest.FixtureRequest) -> Place:
    return Place(request.getfixturevalue(f"hf_{request.param}"))


@pytest.fixture
def lfs(hf_lfs: MiniHub) -> Place:
    return Place(hf_lfs)


@pytest.fixture
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    """A server for one test, which may change what holds for all requests."""
    server = MiniHub(tmp_path / "server", *getattr(request, "param", ()))
    request.addfinalizer(server.stop)
    return Place(server)


@pytest.fixture
def thing(make_object: MakeObject) -> Object:
    """Bytes that no other test has sent: servers are shared, and ask for nothing twice."""
    return make_object(secrets.token_bytes(1_000_000))


def test_a_checkpoint_is_one_commit_with_archive_pointer_and_card(place: Place, thing: Object) -> None:
    place.hub().put_archive(NAME, thing.pointer(), thing.path, NOTES)
    place.assert_published_once(thing)
    assert place.server.repository(place.repository)["private"] is True


def test_publishing_again_makes_no_commit(place: Place, thing: Object) -> None:
    for _ in range(3):
        place.hub().put_archive(NAME, thing.pointer(), thing.path, NOTES)
    place.assert_published_once(thing)


def test_archives_go_where_the_hub_wants_them(hf_lfs: MiniHub, hf_xet: MiniHub, thing: Object) -> None:
    """A hub without Xet is found out by one question; with it, nothing goes to large file storage."""
    for server in (hf_xet, hf_lfs):
        place = Place(server)
        place.hub().put_archive(NAME, thing.pointer(), thing.path)
        log = [line for line in server.log() if place.repository in line]
        assert any("xet-write-token" in line for line in log)
        assert any("objects/batch" in line for line in log) is (server is hf_lfs)


def test_nothing_is_sent_if_the_hub_does_not_keep_the_repository_private(
    tmp_path: Path, thing: Object, request: pytest.FixtureRequest
) -> None:
    server = MiniHub(tmp_path / "server", "--public")
    request.addfinalizer(server.stop)
    place = Place(server)
    with pytest.raises(HubError, match="not private; nothing was sent"):
        place.hub().put_archive(NAME, thing.pointer(), thing.path)
    assert server.repository(place.repository)["titles"] == ["initial commit"]
    assert not any("lfs" in line or "preupload" in line for line in server.log())
    place.hub(public=True).put_archive(NAME, thing.pointer(), thing.path)
    place.assert_published_once(thing)


def test_a_token_that_others_may_read_is_refused_and_never_shown(lfs: Place, thing: Object, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(HubError, match="others may read this token") as caught:
            lfs.hub(token_file=str(path)).get_pointer(NAME)
        assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "two words \x00", "x" * 5000])
def test_a_file_that_holds_no_token_is_refused(lfs: Place, tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(HubError, match="token"):
        lfs.hub(token_file=str(path)).get_pointer(NAME)


def test_errors_show_neither_the_token_nor_signed_addresses(lfs: Place, thing: Object) -> None:
    lfs.server.fault(f"PUT /_lfs/{thing.sha256}", "status", status=403, times=9)
    with pytest.raises(HubError) as caught:
        lfs.hub().put_archive(NAME, thing.pointer(), thing.path)
    assert TOKEN not in str(caught.value)
    assert "signature=secret" not in str(caught.value)


def test_what_goes_wrong_on_the_way_says_what_to_do(lfs: Place, thing: Object, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("hf_wrong")
    for changes, words in (
        ({"token_file": str(wrong)}, r"refuses the token \(401: Invalid credentials.*hf auth login"),
        ({"endpoint": "http://127.0.0.1:9"}, "cannot be reached .*Connection refused.*: is the network up"),
    ):
        for use in (
            lambda hub: hub.get_pointer(NAME),
            lambda hub: hub.put_archive(NAME, thing.pointer(), thing.path),
        ):
            with pytest.raises(HubError, match=words) as caught:
                use(lfs.hub(**changes))
            assert "hf_wrong" not in str(caught.value)
            assert "http" not in str(caught.value)


@pytest.mark.parametrize("location", ["hf://", "hf://owner", "hf://owner/", "hf://a/b/c", "hf://a b/c", "hf://../x"])
def test_a_repository_is_owner_and_name(location: str) -> None:
    with pytest.raises(HubError, match="hf://owner/name"):
        open_hub(location)


# Faults


def publish_until_done(place: Place, thing: Object, attempts: int = 3) -> list[HubError]:
    """Try as the daemon does, with a new process's worth of state each time; the errors on the way."""
    errors = []
    for _ in range(attempts):
        try:
            place.hub().put_archive(NAME, thing.pointer(), thing.path, NOTES)
        except HubError as error:
            errors.append(error)
        else:
            return errors
    raise errors[-1]


@pytest.mark.parametrize("status", [500, 502, 412, 409])
def test_a_commit_whose_answer_is_lost_is_not_repeated(place: Place, thing: Object, status: int) -> None:
    place.hub().put_archive("warm-up", thing.pointer(), thing.path)
    before = place.server.repository(place.repository)["titles"]
    place.fault("/commit/main", "after", status=status)
    place.hub().put_archive(NAME, thing.pointer(), thing.path, NOTES)
    assert place.server.repository(place.repository)["titles"] == [*before, f"Publish {NAME}"]
    assert b"".join(place.hub().read_archive(NAME, thing.pointer(), 0)) == thing.path.read_bytes()


@pytest.mark.parametrize("request_part", ["/commit/main", "/preupload", "/revision/main", "/resolve/"])
@pytest.mark.parametrize("mode", ["drop", "cut", "status", "slow"])
def test_a_fault_on_the_way_leaves_one_commit_in_the_end(
    place: Place, thing: Object, request_part: str, mode: str
) -> None:
    place.hub()._prepare_repository()  # type: ignore[attr-defined]
    place.fault(request_part, mode, status=503, seconds=0.3)
    assert len(publish_until_done(place, thing)) <= 1
    place.assert_published_once(thing)


def test_an_upload_that_breaks_is_taken_up_again(lfs: Place, thing: Object) -> None:
    lfs.server.fault(f"PUT /_lfs/{thing.sha256}", "drop")
    publish_until_done(lfs, thing)
    lfs.assert_published_once(thing)


def test_a_commit_limit_per_hour_is_an_hour_of_silence(place: Place, thing: Object) -> None:
    place.hub()._prepare_repository()  # type: ignore[attr-defined]
    text = "You have exceeded our hourly quota for commits: 128 per hour"
    place.fault("/commit/main", "status", status=429, body=text, headers={"Retry-After": "5"})
    errors = publish_until_done(place, thing)
    assert [error.retry_after for error in errors] == [3600]
    place.assert_published_once(thing)


def test_another_429_waits_as_long_as_it_says(lfs: Place) -> None:
    for header, seconds in ({"Retry-After": "7"}, 7), ({}, 60), ({"Retry-After": "999999"}, 3600):
        lfs.fault("", "status", status=429, body="slow down", headers=header)
        with pytest.raises(HubError) as caught:
            lfs.hub().get_pointer(NAME)
        assert caught.value.retry_after == seconds


def test_a_rotated_token_is_taken_up(own: Place, thing: Object) -> None:
    own.hub().put_archive("first", thing.pointer(), thing.path)
    own.server.set_token("rotated-token")
    with pytest.raises(HubError, match="refuses the token"):
        own.hub().put_archive(NAME, thing.pointer(), thing.path)
    own.server.token_file.write_text("rotated-token\n")
    own.hub().put_archive(NAME, thing.pointer(), thing.path)
    assert own.hub().get_pointer(NAME) == thing.pointer()


@pytest.mark.parametrize("own", [("--weak",), ("--weak", "--no-races"), ("--no-races",)], indirect=True, ids=" ".join)
def test_a_hub_without_tree_oid_or_parent_commits_gets_one_commit_all_the_same(own: Place, thing: Object) -> None:
    own.hub()._prepare_repository()  # type: ignore[attr-defined]
    own.fault("/commit/main", "after", status=500)
    own.hub().put_archive(NAME, thing.pointer(), thing.path, NOTES)
    own.hub().put_archive(NAME, thing.pointer(), thing.path, NOTES)
    own.assert_published_once(thing)


def test_commits_of_others_do_not_get_lost(lfs: Place, make_object: MakeObject, thing: Object) -> None:
    """Somebody commits between the look at the branch and the commit; the second attempt takes theirs along."""
    lfs.hub().put_archive("first", thing.pointer(), thing.path)
    hub = lfs.hub()
    real_card: Callable[[], str] = hub._card  # type: ignore[attr-defined]
    other = make_object(b"somebody else's")
    raced = []

    def card_while_somebody_commits() -> str:
        text = real_card()
        if not raced:
            raced.append(True)
            lfs.hub().put_archive("theirs", other.pointer(), other.path)
        return text

    hub._card = card_while_somebody_commits  # type: ignore[attr-defined]
    hub.put_archive(NAME, thing.pointer(), thing.path)
    found = lfs.server.repository(lfs.repository)
    assert found["titles"][-2:] == ["Publish theirs", f"Publish {NAME}"]
    card = b"".join(lfs.hub()._client.read("README.md", "main", 0, 1 << 20)).decode()  # type: ignore[attr-defined]
    assert "| `theirs` |" in card
    assert f"| `{NAME}` |" in card


@pytest.mark.parametrize("mode", ["cut", "drop"])
def test_a_download_that_breaks_goes_on_where_it_ended(
    lfs: Place, make_object: MakeObject, tmp_path: Path, mode: str
) -> None:
    thing = make_object(secrets.token_bytes(3_000_000))
    lfs.hub().put_archive(NAME, thing.pointer(), thing.path)
    lfs.server.fault(f"GET /_lfs/{thing.sha256}", mode)
    assert fetch_archive(lfs.hub(), NAME, thing.pointer(), tmp_path / "part") == thing.size
    assert (tmp_path / "part").read_bytes() == thing.path.read_bytes()


# Model card


def test_the_card_says_what_it_is_and_lists_checkpoints_in_order(thing: Object) -> None:
    card = ""
    for step in (10, 9, 100, 9):
        card = update_card(card, "acme/run", f"checkpoint-{step}", thing.pointer(), NOTES)
    head = card.split("---\n")[1]
    assert head == "library_name: ddct\nbase_model: acme/base\nbase_model_relation: finetune\n"
    assert "ddct pull hf://acme/run CHECKPOINT --base" in card
    rows = [line for line in card.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert "| 1.00 MB | 100.00 MB | 0.512 | 0.1234 | paper | acme/base |" in rows[0]
    assert "checkpoint-10`" not in forget_checkpoint(card, "checkpoint-10")


def test_the_hubs_own_parser_understands_the_card(thing: Object) -> None:
    for before in ("", "---\nlicense: mit\n---\n# Words\n"):
        card = ModelCard(update_card(before, "acme/run", NAME, thing.pointer(), NOTES))
        assert card.data.library_name == "ddct"
        assert card.data.base_model == "acme/base"
        assert card.data.to_dict()["base_model_relation"] == "finetune"
        assert f"| `{NAME}` |" in card.text
    assert card.data.license == "mit"


def test_a_checkpoint_packed_against_an_earlier_one_says_so_in_the_card(thing: Object) -> None:
    notes = replace(NOTES, base_name="run/checkpoint-9")
    card = update_card("", "acme/run", NAME, thing.pointer(), notes)
    assert "| paper | run/checkpoint-9 |" in card
    assert ModelCard(card).data.base_model == "acme/base"


def test_what_people_wrote_into_the_card_stays(thing: Object) -> None:
    theirs = "---\nlicense: mit\nbase_model: acme/other\n---\n# My model\n\nWords.\n"
    card = update_card(theirs, "acme/run", NAME, thing.pointer(), NOTES)
    card = update_card(card + "More words.\n", "acme/run", "checkpoint-20", thing.pointer(), None)
    assert card.startswith("---\nlicense: mit\nbase_model: acme/other\nlibrary_name: ddct\n")
    assert "# My model\n\nWords.\n" in card
    assert card.endswith("More words.\n")
    assert card.count("| `checkpoint-") == 2
