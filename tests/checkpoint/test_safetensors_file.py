"""Reading one safetensors file: whole and valid, or refused."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ddct_format.checkpoint import SafetensorsFile
from ddct_format.errors import CheckpointError, StorageError

SMALL = {
    "a": ("F32", (2, 2), bytes(range(16))),
    "b": ("BF16", (3,), bytes(range(6))),
    "empty": ("F16", (0, 7), b""),
    "scalar": ("I64", (), bytes(range(8))),
}


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture
def small(tmp_path: Path, library_bytes: Callable[..., bytes]) -> Path:
    path = tmp_path / "small.safetensors"
    path.write_bytes(library_bytes(SMALL, {"format": "pt"}))
    return path


def test_names_types_shapes_and_bytes_are_those_that_were_written(small: Path) -> None:
    with SafetensorsFile(small) as file:
        assert file.metadata == {"format": "pt"}
        found = {name: (t.dtype, t.shape, bytes(file.read(name))) for name, t in file.tensors.items()}
        assert found == SMALL
        starts = [tensor.start for tensor in file.tensors.values()]
        assert starts == sorted(starts)


def test_every_tensor_of_a_file_written_by_torch_reads_back(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    wide = torch.randint(0, 255, (4, 64), dtype=torch.uint8, generator=generator)
    types = [torch.bool, torch.int8, torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.float64]
    tensors = {str(dtype): wide.clone().view(dtype) for dtype in types if dtype is not torch.bool}
    tensors["bool"] = wide > 100
    save_file(tensors, tmp_path / "model.safetensors")
    with SafetensorsFile(tmp_path / "model.safetensors") as file:
        assert file.metadata == {}
        for name, tensor in tensors.items():
            assert file.tensors[name].shape == tuple(tensor.shape)
            assert bytes(file.read(name)) == tensor.view(torch.uint8).numpy().tobytes()


def test_reading_does_not_copy_and_does_not_allow_writing(small: Path) -> None:
    with SafetensorsFile(small) as file:
        view = file.read("a")
        assert view.readonly
        assert view.obj is file.read("b").obj


def test_views_outlive_close(small: Path) -> None:
    file = SafetensorsFile(small)
    view = file.read("a")
    file.close()
    file.close()
    assert bytes(view) == SMALL["a"][2]
    with pytest.raises(ValueError, match="closed"):
        file.read("a")


def test_closing_gives_all_descriptors_back(small: Path) -> None:
    before = open_descriptors()
    for _ in range(10):
        SafetensorsFile(small).close()
    after = open_descriptors()
    assert after == before


def test_a_refused_file_is_not_left_open(small: Path) -> None:
    small.write_bytes(small.read_bytes() + b"\0")
    before = open_descriptors()
    for _ in range(10):
        with pytest.raises(CheckpointError):
            SafetensorsFile(small)
    after = open_descriptors()
    assert after == before


def test_an_unknown_name_is_refused_by_name(small: Path) -> None:
    with SafetensorsFile(small) as file, pytest.raises(CheckpointError) as refusal:
        file.read("c")
    assert refusal.value.tensor == "c"


def test_every_truncation_is_refused(small: Path) -> None:
    whole = small.read_bytes()
    for size in range(len(whole)):
        small.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as refusal:
            SafetensorsFile(small)
        assert refusal.value.place == str(small)


def test_bytes_after_the_last_tensor_are_refused(small: Path) -> None:
    small.write_bytes(small.read_bytes() + b"\0")
    with pytest.raises(CheckpointError):
        SafetensorsFile(small)


@given(data=st.binary(max_size=200), position=st.integers(0, 400))
@example(data=b"", position=0)
@example(data=b"\xff" * 8, position=0)
def test_damage_is_refused_or_leaves_a_readable_file(
    library_bytes: Callable[..., bytes], data: bytes, position: int
) -> None:
    whole = library_bytes(SMALL, {"format": "pt", "other": "x"})
    damaged = whole[:position] + data + whole[position + len(data) :]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "damaged.safetensors")
        path.write_bytes(damaged)
        try:
            with SafetensorsFile(path) as file:
                sizes = {name: len(file.read(name)) for name in file.tensors}
        except CheckpointError:
            return
    assert sum(sizes.values()) == len(damaged) - 8 - struct.unpack("<Q", damaged[:8])[0]


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"Q8","shape":[1],"data_offsets":[0,1]}}',
        '{"__metadata__":{"a":1},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        "[]",
        "nonsense",
    ],
)
def test_headers_that_lie_are_refused(header_file: Callable[[str, int], Path], header: str) -> None:
    with pytest.raises(CheckpointError):
        SafetensorsFile(header_file(header, 1))


@pytest.mark.parametrize("name", ["", "a\\n", "\\u0000", "\\u007f", "\\u0085", "x" * 1025, "é" * 513])
def test_names_that_an_archive_cannot_carry_are_refused(header_file: Callable[[str, int], Path], name: str) -> None:
    path = header_file(f'{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}', 1)
    with pytest.raises(CheckpointError, match="name must"):
        SafetensorsFile(path)


@pytest.mark.parametrize("name", ["x" * 1024, "é" * 512, "a b", "\u00a0", "😀", "../a"])
def test_any_other_name_is_accepted(header_file: Callable[[str, int], Path], name: str) -> None:
    path = header_file(f'{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}', 1)
    with SafetensorsFile(path) as file:
        assert list(file.tensors) == [name]


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F8_E4M3FNUZ", [1], 1),
        ("F8_E5M2FNUZ", [1], 1),
        ("F4", [2], 1),
        ("F6_E2M3", [4], 3),
        ("F6_E3M2", [4], 3),
    ],
)
def test_element_types_unknown_to_the_format_are_refused(
    header_file: Callable[[str, int], Path], dtype: str, shape: list[int], size: int
) -> None:
    path = header_file(f'{{"odd":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{size}]}}}}', size)
    with pytest.raises(CheckpointError, match=dtype) as refusal:
        SafetensorsFile(path)
    assert refusal.value.tensor == "odd"


@pytest.mark.parametrize(("shape", "size"), [([1] * 9, 1), ([0, 2**49], 0)])
def test_shapes_beyond_the_limits_are_refused(
    header_file: Callable[[str, int], Path], shape: list[int], size: int
) -> None:
    path = header_file(f'{{"odd":{{"dtype":"U8","shape":{shape},"data_offsets":[0,{size}]}}}}', size)
    with pytest.raises(CheckpointError, match="are more than") as refusal:
        SafetensorsFile(path)
    assert refusal.value.tensor == "odd"


def test_metadata_keeps_the_order_of_the_file(header_file: Callable[[str, int], Path]) -> None:
    keys = [f"key{index * 7 % 20}" for index in range(20)]
    pairs = ",".join(f'"{key}":"é"' for key in keys)
    with SafetensorsFile(header_file(f'{{"__metadata__":{{{pairs}}}}}', 0)) as file:
        assert list(file.metadata) == keys


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        SafetensorsFile(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(tmp_path)


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(tmp_path / "pipe.safetensors")


def test_a_file_that_may_not_be_read_is_a_storage_error(
    small: Path, unprivileged: Callable[[Path], AbstractContextManager[None]]
) -> None:
    small.chmod(0)
    with unprivileged(small.parent), pytest.raises(StorageError, match="Permission denied"):
        SafetensorsFile(small.name)


def test_a_link_that_leads_to_itself_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    with pytest.raises(StorageError):
        SafetensorsFile(tmp_path / "loop.safetensors")


def test_an_untouched_file_is_unchanged(small: Path) -> None:
    with SafetensorsFile(small) as file:
        file.check_unchanged()


def test_a_write_in_place_is_noticed(small: Path) -> None:
    with SafetensorsFile(small) as file:
        status = small.stat()
        with small.open("r+b") as writer:
            writer.write(b"x")
        os.utime(small, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        with pytest.raises(CheckpointError, match="changed or replaced"):
            file.check_unchanged()


def test_another_size_is_noticed_even_at_the_same_time(small: Path) -> None:
    with SafetensorsFile(small) as file:
        status = small.stat()
        with small.open("ab") as writer:
            writer.write(b"x")
        os.utime(small, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(CheckpointError, match="changed or replaced"):
            file.check_unchanged()


def test_another_file_under_the_same_path_is_noticed(small: Path) -> None:
    with SafetensorsFile(small) as file:
        status = small.stat()
        twin = small.with_name("twin")
        twin.write_bytes(small.read_bytes())
        os.utime(twin, ns=(status.st_atime_ns, status.st_mtime_ns))
        twin.replace(small)
        with pytest.raises(CheckpointError, match="changed or replaced"):
            file.check_unchanged()


def test_a_deleted_file_stays_readable_and_counts_as_unchanged(small: Path) -> None:
    with SafetensorsFile(small) as file:
        small.unlink()
        file.check_unchanged()
        assert bytes(file.read("a")) == SMALL["a"][2]


def test_reading_needs_no_torch(small: Path, start_python: Callable[..., subprocess.Popen[str]]) -> None:
    process = start_python(
        "import sys; from ddct_format.checkpoint import SafetensorsFile\n"
        "SafetensorsFile(sys.argv[1]).close(); print('torch' in sys.modules)",
        small,
    )
    assert process.communicate(timeout=60)[0] == "False\n"
