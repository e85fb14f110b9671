"""Finished or not: literal directories, one rule broken at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from pathlib import Path

import pytest
from daemon_models import tuned_tensors, write_model
from fake_trainer import write_checkpoint
from safetensors.numpy import save_file

from ddct_daemon.bases import named_base
from ddct_daemon.completeness import Facts, Verdict, inspect, judge
from ddct_daemon.listing import FileStat, Kind, Listing, list_checkpoint
from ddct_daemon.retention import best_checkpoints


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint-10", 10, 0)
    return tmp_path / "checkpoint-10"


def verdict_of(path: Path) -> Verdict:
    listing = list_checkpoint(path.parent, path.name)
    assert listing is not None
    return inspect(listing)


def assert_unfinished(path: Path, reason: str) -> None:
    verdict = verdict_of(path)
    assert not verdict.weights
    assert not verdict.resumable
    assert reason in verdict.reason


def test_a_whole_checkpoint_can_be_packed_and_resumed(checkpoint: Path) -> None:
    assert verdict_of(checkpoint) == Verdict(weights=True, resumable=True, reason="")


def test_a_checkpoint_is_unfinished_after_every_single_write_but_the_last(tmp_path: Path) -> None:
    """The trainer's own sequence, stopped after each step."""
    directory = tmp_path / "checkpoint-3"
    verdicts = []

    def look() -> None:
        verdicts.append(verdict_of(directory).weights)

    write_checkpoint(directory, 3, 0, look)
    assert len(verdicts) > 8
    assert not any(verdicts)
    assert verdict_of(directory).weights


@pytest.mark.parametrize(
    "sign",
    [
        ".tmp-upload",
        "model.safetensors.tmp",
        "x.part",
        "sub/y.incomplete",
        "checkpoint-is-incomplete.txt",
        ".metadata.tmp",
        ".tmp_dir/x",
        "tmp-checkpoint-11/x",
    ],
)
def test_a_sign_of_unfinished_work_inside(checkpoint: Path, sign: str) -> None:
    (checkpoint / sign).parent.mkdir(exist_ok=True)
    (checkpoint / sign).write_bytes(b"")
    assert_unfinished(checkpoint, "sign of unfinished work")


def test_a_sign_of_unfinished_work_beside(checkpoint: Path) -> None:
    (checkpoint.parent / "checkpoint-10-unfinished").mkdir()
    assert_unfinished(checkpoint, "checkpoint-10-unfinished")


def test_without_trainer_state_it_is_unfinished(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").unlink()
    assert_unfinished(checkpoint, "trainer_state.json, which is written last, is not there")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not complete"),
        ('{"global_step": 10', "is not complete"),
        ("[" * 100_000, "is not complete"),
        ("[10]", "is not complete"),
        ("{}", "is not complete"),
        ('{"global_step": "10"}', "no whole number"),
        ('{"global_step": 10.0}', "no whole number"),
        ('{"global_step": true}', "no whole number"),
        ('{"global_step": 9}', "is of step 9, not 10"),
    ],
)
def test_trainer_state_must_be_whole_and_of_this_step(checkpoint: Path, text: str, reason: str) -> None:
    (checkpoint / "trainer_state.json").write_text(text)
    assert_unfinished(checkpoint, reason)


def test_weights_of_the_wrong_length_are_unfinished(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    raw = path.read_bytes()
    for damaged in (raw[:-1], raw + b"\0", raw[:100]):
        path.write_bytes(damaged)
        assert_unfinished(checkpoint, "model.safetensors has")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "has only 0 bytes"),
        (b"\0" * 4, "has only 4 bytes"),
        (b"\0" * 5000, "no complete header"),
        (b"\xff" * 5000, "no complete header"),
        (struct.pack("<Q", 5) + b"12345", "no valid header"),
        (struct.pack("<Q", 2) + b"[]", "no valid header"),
        (struct.pack("<Q", 12) + b'{"a":{"b":1}', "no valid header"),
        (struct.pack("<Q", 13) + b'{"a":{"b":1}}', "no valid header"),
        (struct.pack("<Q", 27) + b'{"a":{"data_offsets":[0,{}]', "no valid header"),
    ],
)
def test_hostile_weight_files_are_unfinished_and_nothing_worse(checkpoint: Path, raw: bytes, reason: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(raw)
    assert_unfinished(checkpoint, reason)


def sharded(directory: Path) -> list[str]:
    """Two shards and their index, as save_pretrained writes them."""
    (directory / "model.safetensors").unlink()
    tensors = tuned_tensors(0)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, directory / shard, {"format": "pt"})
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )
    return list(shards)


def test_a_sharded_checkpoint_is_whole_with_all_its_shards(checkpoint: Path) -> None:
    sharded(checkpoint)
    assert verdict_of(checkpoint).weights


def test_a_missing_or_short_shard_makes_it_unfinished(checkpoint: Path) -> None:
    _, second = sharded(checkpoint)
    raw = (checkpoint / second).read_bytes()
    (checkpoint / second).write_bytes(raw[:-1])
    assert_unfinished(checkpoint, f"{second} has {len(raw) - 1} bytes")
    (checkpoint / second).unlink()
    assert_unfinished(checkpoint, f"shard {second}")


def test_shards_without_their_index_are_unfinished(checkpoint: Path) -> None:
    sharded(checkpoint)
    (checkpoint / "model.safetensors.index.json").unlink()
    assert_unfinished(checkpoint, "no index lists it")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": []}}',
        '{"weight_map": {"a": "../model.safetensors"}}',
    ],
)
def test_a_broken_index_makes_it_unfinished(checkpoint: Path, text: str) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(text)
    assert_unfinished(checkpoint, "model.safetensors.index.json")


def test_pickled_weights_are_named_as_the_reason(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert_unfinished(checkpoint, "pytorch_model.bin")


def test_no_weights_at_all(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert_unfinished(checkpoint, "no .safetensors file")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("damage", ["gone", "cut", "no zip"])
def test_training_state_decides_whether_it_is_resumable_but_not_whether_it_is_packed(
    checkpoint: Path, name: str, damage: str
) -> None:
    path = checkpoint / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10] if damage == "cut" else b"\x80\x02}q\x00.")
    verdict = verdict_of(checkpoint)
    assert verdict.weights
    assert not verdict.resumable
    assert name in verdict.reason


def test_random_states_of_several_ranks_must_all_be_whole(checkpoint: Path) -> None:
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    assert verdict_of(checkpoint).resumable
    (checkpoint / "rng_state_1.pth").write_bytes(b"PK")
    assert not verdict_of(checkpoint).resumable


def test_a_plain_model_directory_needs_no_end_marker_and_is_not_resumable(tmp_path: Path) -> None:
    write_model(tmp_path / "final", tuned_tensors(0))
    verdict = verdict_of(tmp_path / "final")
    assert verdict.weights
    assert not verdict.resumable
    assert "no training state" in verdict.reason


def test_files_that_vanish_or_cannot_be_read_are_a_reason_not_a_crash(tmp_path: Path) -> None:
    """The listing is older than the facts."""
    path = tmp_path / "checkpoint-1"
    files = tuple(
        FileStat(name, 10, 0, 0) for name in ("model.safetensors", "optimizer.pt", "model.safetensors.index.json")
    )
    verdict = inspect(Listing("checkpoint-1", path, Kind.TRAINER, files))
    assert not verdict.weights


def test_the_judgement_is_a_pure_function_of_listing_and_facts(tmp_path: Path) -> None:
    files = (FileStat("model.safetensors", 10, 0, 0), FileStat("optimizer.pt", 10, 0, 0))
    listing = Listing("checkpoint-5", tmp_path / "nowhere" / "checkpoint-5", Kind.TRAINER, files)
    facts = Facts(
        weights={"model.safetensors": None},
        archives={"optimizer.pt": None, "scheduler.pt": None, "rng_state.pth": None},
        global_step=5,
    )
    assert judge(listing, facts) == Verdict(weights=True, resumable=True, reason="")


def test_nobody_waits_for_the_writer_of_a_named_pipe(checkpoint: Path) -> None:
    for name in ("trainer_state.json", "README.md", "adapter_config.json", "model.safetensors.index.json"):
        (checkpoint / name).unlink(missing_ok=True)
        os.mkfifo(checkpoint / name)
    signal.alarm(30)  # rather than for ever
    assert_unfinished(checkpoint, "trainer_state.json is not complete")
    listing = list_checkpoint(checkpoint.parent, checkpoint.name)
    assert listing is not None
    assert best_checkpoints([listing]) == set()
    assert named_base(checkpoint) is None
    signal.alarm(0)
