"""Checkpoints of other frameworks: when they are finished, and what is said where ddct cannot pack them."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_models import tuned_tensors, write_model
from fake_trainer import torch_file, write_checkpoint

from ddct_daemon.completeness import Verdict, inspect
from ddct_daemon.listing import Kind, Listing, list_checkpoint, list_checkpoints


def look(path: Path) -> Listing:
    listing = list_checkpoint(path.parent, path.name)
    assert listing is not None
    return listing


def verdict_of(path: Path, *, submitted: bool = False) -> Verdict:
    return inspect(look(path), submitted=submitted)


def assert_unfinished(path: Path, reason: str) -> None:
    verdict = verdict_of(path)
    assert (verdict.weights, verdict.resumable, verdict.unsupported) == (False, False, False)
    assert reason in verdict.reason


def assert_cannot_be_packed(path: Path, reason: str) -> None:
    verdict = verdict_of(path)
    assert (verdict.weights, verdict.unsupported) == (False, True)
    assert reason in verdict.reason


def write_dcp(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for rank in (0, 1):
        (directory / f"__{rank}_0.distcp").write_bytes(b"shard")
    return directory


def test_dcp_is_finished_when_its_metadata_is_there_and_cannot_be_packed(tmp_path: Path) -> None:
    directory = write_dcp(tmp_path / "step-100")
    assert look(directory).kind is Kind.DCP
    assert_unfinished(directory, ".metadata, which is written last")
    (directory / ".metadata").touch()
    assert_unfinished(directory, ".metadata, which is written last")
    (directory / ".metadata").write_bytes(b"\x80\x02}.")
    assert_cannot_be_packed(directory, "torch DCP shards; convert them to safetensors")


def test_safetensors_beside_dcp_shards_are_packed(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "step-100", tuned_tensors(0))
    (directory / "__0_0.distcp").write_bytes(b"shard")
    assert_unfinished(directory, ".metadata")
    (directory / ".metadata").write_bytes(b"\x80\x02}.")
    assert verdict_of(directory).weights


def test_a_sharded_fsdp_checkpoint_of_the_trainer_cannot_be_packed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-10", 10, 0)
    (tmp_path / "checkpoint-10" / "model.safetensors").unlink()
    write_dcp(tmp_path / "checkpoint-10" / "pytorch_model_fsdp_0")
    assert_cannot_be_packed(tmp_path / "checkpoint-10", "torch DCP shards")


@pytest.mark.parametrize(("latest", "finished"), [(None, False), ("global_step9", False), ("global_step11\n", True)])
def test_deepspeed_is_finished_when_latest_has_come_as_far(tmp_path: Path, latest: str | None, finished: bool) -> None:
    directory = tmp_path / "global_step10"
    directory.mkdir()
    (directory / "mp_rank_00_model_states.pt").write_bytes(torch_file())
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    if finished:
        assert_cannot_be_packed(directory, "zero_to_fp32.py")
    else:
        assert_unfinished(directory, "latest beside it")


def test_deepspeed_inside_of_a_trainers_checkpoint_decides_whether_it_is_resumable(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint-10"
    write_checkpoint(directory, 10, 0)
    (directory / "optimizer.pt").unlink()
    (directory / "scheduler.pt").unlink()
    (directory / "global_step10").mkdir()
    verdict = verdict_of(directory)
    assert (verdict.weights, verdict.resumable) == (True, False)
    (directory / "latest").write_text("global_step10")
    assert verdict_of(directory).resumable


@pytest.mark.parametrize(("text", "finished"), [("", False), ("9", False), ("10", True), ("release", True)])
def test_megatron_is_finished_when_its_tracker_has_come_as_far(tmp_path: Path, text: str, finished: bool) -> None:
    directory = tmp_path / "iter_0000010"
    (directory / "mp_rank_00").mkdir(parents=True)
    (directory / "mp_rank_00" / "model_optim_rng.pt").write_bytes(torch_file())
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text)
    if finished:
        assert_cannot_be_packed(directory, "Megatron's pickles")
    else:
        assert_unfinished(directory, "latest_checkpointed_iteration.txt beside it")


def test_lightning_files_must_be_whole_and_cannot_be_packed(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    (directory / "epoch=1-step=10.ckpt").write_bytes(torch_file()[:-5])
    assert_unfinished(directory, "is not a complete torch file")
    (directory / "epoch=1-step=10.ckpt").write_bytes(torch_file())
    assert_cannot_be_packed(directory, "save the model's weights as safetensors")


def test_an_adapter_is_finished_when_its_configuration_parses_and_is_not_packed(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "adapter", {"lora.weight": tuned_tensors(0)["norm.weight"]})
    (directory / "adapter_config.json").write_text('{"peft_type"')
    assert_unfinished(directory, "adapter_config.json is not complete")
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert_cannot_be_packed(directory, "a PEFT adapter is small already")


def test_submitting_replaces_the_end_marker_but_not_the_contents(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-10", 10, 0)
    (tmp_path / "checkpoint-10" / "trainer_state.json").unlink()
    assert not verdict_of(tmp_path / "checkpoint-10").weights
    assert verdict_of(tmp_path / "checkpoint-10", submitted=True).weights
    with (tmp_path / "checkpoint-10" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert not verdict_of(tmp_path / "checkpoint-10", submitted=True).weights


def test_all_of_them_are_found_in_a_directory_of_runs(tmp_path: Path) -> None:
    write_dcp(tmp_path / "a" / "step-100")
    (tmp_path / "b" / "global_step10").mkdir(parents=True)
    (tmp_path / "c" / "iter_0000010").mkdir(parents=True)
    write_checkpoint(tmp_path / "d" / "checkpoint-10", 10, 0)
    found = {listing.name: listing.kind for listing in list_checkpoints(tmp_path)}
    assert found == {
        "a/step-100": Kind.DCP,
        "b/global_step10": Kind.DEEPSPEED,
        "c/iter_0000010": Kind.MEGATRON,
        "d/checkpoint-10": Kind.TRAINER,
    }
