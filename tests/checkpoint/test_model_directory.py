"""Opening a model: all of it, or a refusal that says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.checkpoint import open_checkpoint
from ddct_format.checkpoint.names import path_problem
from ddct_format.errors import CheckpointError, StorageError

MakeFile = Callable[..., Path]
MakeIndex = Callable[[Path, object], Path]

FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path, make_file: MakeFile, make_index: MakeIndex) -> Path:
    root = tmp_path / "sharded"
    make_file(root / FIRST, "a", "c")
    make_file(root / SECOND, "b")
    make_index(root, {"c": FIRST, "a": FIRST, "b": SECOND})
    return root


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught, open_checkpoint(path):
        pass
    assert caught.value.place is not None
    return caught.value


def test_a_directory_with_one_file(tmp_path: Path, make_file: MakeFile) -> None:
    make_file(tmp_path / "model.safetensors", "b", "a")
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.path == tmp_path
        assert [(shard.path, shard.metadata) for shard in checkpoint.shards] == [
            ("model.safetensors", {"format": "pt"})
        ]
        assert list(checkpoint.tensors) == ["a", "b"]
        tensor = checkpoint.tensors["a"]
        assert (tensor.name, tensor.dtype, tensor.shape, tensor.shard, tensor.nbytes) == (
            "a",
            "F32",
            (2,),
            0,
            8,
        )
        assert checkpoint.nbytes == 16
        assert checkpoint.read("b").tobytes() == b"\0\0\0\0\0\0\x80\xbf"


def test_a_single_file_has_no_side_files(tmp_path: Path, make_file: MakeFile) -> None:
    path = make_file(tmp_path / "any name.safetensors", "a")
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(path) as checkpoint:
        assert [shard.path for shard in checkpoint.shards] == ["any name.safetensors"]
        assert checkpoint.side_files() == ()
        assert checkpoint.skipped == ()
        with pytest.raises(CheckpointError):
            checkpoint.read_side_file("config.json")


def test_shards_are_found_through_the_index(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        assert [shard.path for shard in checkpoint.shards] == [FIRST, SECOND]
        assert {name: tensor.shard for name, tensor in checkpoint.tensors.items()} == {"a": 0, "b": 1, "c": 0}
        assert [file.path for file in checkpoint.side_files()] == ["model.safetensors.index.json"]
        checkpoint.check_unchanged()


def test_shards_are_found_without_an_index_when_all_are_there(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c"]
    (sharded / FIRST).unlink()
    assert FIRST in refusal(sharded).reason


def test_files_of_any_name_make_up_a_model_if_their_tensors_differ(tmp_path: Path, make_file: MakeFile) -> None:
    make_file(tmp_path / "text.safetensors", "a")
    make_file(tmp_path / "vision.safetensors", "b")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
    make_file(tmp_path / "vision.safetensors", "a")
    caught = refusal(tmp_path)
    assert caught.tensor == "a"
    assert "text.safetensors" in caught.reason
    assert "vision.safetensors" in caught.reason


def test_other_weights_beside_the_model_are_left_out(sharded: Path, make_file: MakeFile) -> None:
    make_file(sharded / "consolidated.safetensors", "a", "b", "c")
    with open_checkpoint(sharded) as checkpoint:
        assert len(checkpoint.shards) == 2
        assert [skipped.path for skipped in checkpoint.skipped] == ["consolidated.safetensors"]


def test_tensors_that_the_index_does_not_list_belong_to_the_model(sharded: Path, make_index: MakeIndex) -> None:
    make_index(sharded, {"a": FIRST, "b": SECOND})
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c"]


def test_a_missing_shard_is_refused_by_name(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    assert SECOND in refusal(sharded).reason


def test_a_shard_whose_link_leads_nowhere_is_missing(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    (sharded / SECOND).symlink_to("blobs/0123")
    assert SECOND in refusal(sharded).reason


def test_a_truncated_shard_is_refused_by_name(sharded: Path) -> None:
    os.truncate(sharded / SECOND, (sharded / SECOND).stat().st_size - 1)
    assert refusal(sharded).place == str(sharded / SECOND)


def test_a_tensor_that_the_index_lists_but_no_shard_has_is_refused(sharded: Path, make_index: MakeIndex) -> None:
    make_index(sharded, {"a": FIRST, "b": SECOND, "c": FIRST, "d": FIRST})
    assert refusal(sharded).tensor == "d"


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(sharded: Path, make_index: MakeIndex) -> None:
    make_index(sharded, {"a": FIRST, "b": SECOND, "c": SECOND})
    assert refusal(sharded).tensor == "c"


def test_a_tensor_that_stands_in_two_shards_is_refused(sharded: Path, make_file: MakeFile) -> None:
    make_file(sharded / SECOND, "a", "b")
    assert refusal(sharded).tensor == "a"


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "sub/../../outside.safetensors",
        "/etc/outside.safetensors",
        "./model.safetensors",
        "sub//model.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        "a\nb.safetensors",
        "",
        "sub/",
        ".",
        "x" * 256 + ".safetensors",
        "\ud800.safetensors",
    ],
)
def test_an_index_that_points_out_of_the_directory_is_refused(
    sharded: Path, make_file: MakeFile, make_index: MakeIndex, shard: str
) -> None:
    make_file(sharded.parent / "outside.safetensors", "b")
    index = make_index(sharded, {"a": FIRST, "b": shard})
    caught = refusal(sharded)
    assert caught.place == str(index)
    assert caught.tensor == "b"
    str(caught).encode()


def test_shards_in_a_sub_directory_are_found(tmp_path: Path, make_file: MakeFile, make_index: MakeIndex) -> None:
    make_file(tmp_path / "weights" / "one.safetensors", "a")
    make_index(tmp_path, {"a": "weights/one.safetensors"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert [shard.path for shard in checkpoint.shards] == ["weights/one.safetensors"]
        assert checkpoint.skipped == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": "model.bin"}}',
        '{"weight_map": {"a": "model.json"}}',
        f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}',
        f'{{"weight_map": {{"a": "{FIRST}"}}, "weight_map": {{"b": "{SECOND}"}}}}',
        '{"weight_map": ' + "[" * 100_000,
        '{"weight_map": {"a": 1' + "0" * 5000 + "}}",
        "\ufeff{}",
    ],
)
def test_an_index_that_makes_no_sense_is_refused(sharded: Path, text: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(text, encoding="utf-8")
    assert refusal(sharded).place == str(index)


def test_an_index_that_is_not_utf8_is_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(b'{"weight_map": {"\xff": "a"}}')
    refusal(sharded)


@given(
    raw=st.binary(max_size=100)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["weight_map", "a"]), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_index_leads_to_anything_but_a_refusal(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    root = tmp_path_factory.mktemp("index")
    (root / "model.safetensors.index.json").write_bytes(raw)
    refusal(root)


def test_shards_that_differ_only_in_case_are_refused(
    tmp_path: Path, make_file: MakeFile, make_index: MakeIndex
) -> None:
    make_file(tmp_path / "one.safetensors", "a")
    make_file(tmp_path / "ONE.safetensors", "b")
    make_index(tmp_path, {"a": "one.safetensors", "b": "ONE.safetensors"})
    assert "case" in refusal(tmp_path).reason


def test_a_single_file_beside_an_index_of_others_is_ambiguous(sharded: Path, make_file: MakeFile) -> None:
    make_file(sharded / "model.safetensors", "a")
    assert "both" in refusal(sharded).reason


def test_a_single_file_with_an_index_of_its_own_is_a_model(
    tmp_path: Path, make_file: MakeFile, make_index: MakeIndex
) -> None:
    make_file(tmp_path / "model.safetensors", "a")
    make_index(tmp_path, {"a": "model.safetensors"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_nothing_at_the_path_is_refused(tmp_path: Path) -> None:
    assert "no such file or directory" in refusal(tmp_path / "absent").reason
    (tmp_path / "dangling").symlink_to("absent")
    assert "no such file or directory" in refusal(tmp_path / "dangling").reason
    (tmp_path / "file").write_text("")
    assert "no such file or directory" in refusal(tmp_path / "file" / "model").reason


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "not a model directory" in refusal(tmp_path).reason
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".hidden.safetensors").write_text("")
    assert "not a model directory" in refusal(tmp_path).reason


def test_a_directory_of_models_says_where_one_is(tmp_path: Path, make_file: MakeFile) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    make_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", "a")
    assert "unet" in refusal(tmp_path).reason


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert "nor a .safetensors file" in refusal(path).reason


def test_an_adapter_is_refused(tmp_path: Path, make_file: MakeFile) -> None:
    weights = make_file(tmp_path / "adapter_model.safetensors", "base_model.model.q.lora_A.weight")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "PEFT adapter" in refusal(tmp_path).reason
    assert "PEFT adapter" in refusal(weights).reason


def test_a_model_with_an_adapter_beside_it_is_refused(sharded: Path) -> None:
    """Loaders that know PEFT would load another base in this case."""
    (sharded / "adapter_config.json").write_text("{}")
    assert "PEFT adapter" in refusal(sharded).reason


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl"])
def test_pickles_are_never_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    for path in (tmp_path, tmp_path / name):
        assert "never unpickles" in refusal(path).reason
        assert "safetensors" in refusal(path).reason


def test_weights_of_another_format_are_named(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").write_bytes(b"")
    assert "tf_model.h5" in refusal(tmp_path).reason


def test_a_shard_that_may_not_be_read_is_a_storage_error(
    sharded: Path, unprivileged: Callable[[Path], AbstractContextManager[None]]
) -> None:
    (sharded / SECOND).chmod(0)
    with unprivileged(sharded), pytest.raises(StorageError, match="Permission denied") as caught:
        open_checkpoint(".")
    assert caught.value.place == SECOND


def test_a_directory_that_may_not_be_read_is_a_storage_error(
    sharded: Path, unprivileged: Callable[[Path], AbstractContextManager[None]]
) -> None:
    sharded.chmod(0)
    with unprivileged(sharded.parent), pytest.raises(StorageError, match="Permission denied"):
        open_checkpoint("sharded")
    sharded.chmod(0o755)


def test_a_directory_that_may_not_be_searched_is_a_storage_error(
    sharded: Path, unprivileged: Callable[[Path], AbstractContextManager[None]]
) -> None:
    """That a file cannot be seen does not mean that it is missing."""
    sharded.chmod(0o444)
    with unprivileged(sharded.parent):
        for path in ("sharded", f"sharded/{FIRST}"):
            with pytest.raises(StorageError, match="Permission denied"):
                open_checkpoint(path)
    sharded.chmod(0o755)


def test_the_links_of_a_hub_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abcd"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (sharded / "config.json").write_text("{}")
    for number, path in enumerate(sorted(sharded.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    with open_checkpoint(snapshot) as checkpoint:
        assert [shard.path for shard in checkpoint.shards] == [FIRST, SECOND]
        assert checkpoint.read_side_file("config.json") == b"{}"
        checkpoint.check_unchanged()


def test_a_change_in_any_shard_is_noticed(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        os.utime(sharded / SECOND)
        with pytest.raises(CheckpointError, match="changed") as caught:
            checkpoint.check_unchanged()
        assert caught.value.place == str(sharded / SECOND)


def test_a_change_of_a_listed_side_file_is_noticed(sharded: Path) -> None:
    (sharded / "config.json").write_text("{}")
    with open_checkpoint(sharded) as checkpoint:
        checkpoint.side_files()
        (sharded / "config.json").write_text("{ }")
        with pytest.raises(CheckpointError, match="changed"):
            checkpoint.check_unchanged()
        with pytest.raises(CheckpointError, match="changed"):
            checkpoint.read_side_file("config.json")


def test_a_checkpoint_that_is_rotated_away_can_be_read_to_its_end(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        checkpoint.side_files()
        shutil.rmtree(sharded)
        assert sum(checkpoint.read(name).nbytes for name in checkpoint.tensors) == checkpoint.nbytes
        checkpoint.check_unchanged()
        with pytest.raises(CheckpointError, match="no such file"):
            checkpoint.read_side_file("model.safetensors.index.json")


def test_side_files_of_a_vanished_directory_are_not_an_empty_list(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        shutil.rmtree(sharded)
        with pytest.raises(StorageError):
            checkpoint.side_files()


def test_an_unknown_tensor_is_refused_by_name(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint, pytest.raises(CheckpointError) as caught:
        checkpoint.read("zzz")
    assert caught.value.tensor == "zzz"


@given(path=st.text(st.sampled_from("ab./\\: \n\u0085é"), max_size=12))
def test_an_accepted_path_stays_inside(path: str) -> None:
    if path_problem(path) is None:
        assert not path.startswith("/")
        assert os.path.normpath(path) == path
        assert os.path.commonpath(["/root", os.path.join("/root", path)]) == "/root"  # noqa: PTH118
