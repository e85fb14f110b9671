"""Writing one safetensors file: the same bytes as safetensors' own serializer."""

from __future__ import annotations

import os
import random
import stat
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.checkpoint import SafetensorsFile, SafetensorsWriter
from ddct_format.container.dtypes import DTYPE_BITS, tensor_nbytes
from ddct_format.errors import CheckpointError, StorageError

Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]

TWO = [("a", "F32", (2,)), ("b", "U8", (3,))]

names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> Tensors:
    drawn = {}
    for name in draw(st.sets(names, max_size=12)):
        dtype, shape = draw(st.sampled_from(sorted(DTYPE_BITS))), draw(shapes)
        drawn[name] = (dtype, shape, random.Random(name).randbytes(tensor_nbytes(dtype, shape)))
    return drawn


def written(content: Tensors, metadata: Mapping[str, str], order: list[str]) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "out.safetensors")
        listed = [(name, dtype, shape) for name, (dtype, shape, _) in content.items()]
        with SafetensorsWriter(path, listed, metadata) as writer:
            for name in order:
                writer.write(name, content[name][2])
        return path.read_bytes()


@given(
    content=tensors(),
    metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=1),
    data=st.data(),
)
def test_the_bytes_are_those_of_the_library(
    library_bytes: Callable[..., bytes], content: Tensors, metadata: dict[str, str], data: st.DataObject
) -> None:
    """At most one metadata entry, because the library writes several in random order."""
    order = data.draw(st.permutations(sorted(content)))
    assert written(content, metadata, order) == library_bytes(content, metadata)


def test_all_element_types_at_once_are_laid_out_like_the_library_does(
    library_bytes: Callable[..., bytes],
) -> None:
    content = {
        f"{dtype}-{n}": (dtype, (n,), bytes(n * bits // 8)) for n in (0, 1, 3) for dtype, bits in DTYPE_BITS.items()
    }
    assert written(content, {}, list(content)) == library_bytes(content)


def test_the_bytes_are_those_of_torch_save_file(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)
    state = {
        "lm_head.weight": torch.randn(31, 7, generator=generator).to(torch.bfloat16),
        "norm": torch.randn(5, generator=generator),
        "flags": torch.tensor([True, False, True]),
        "step": torch.tensor(12),
        "half": torch.randn(3, 3, generator=generator).half(),
        "complex": torch.randn(2, generator=generator, dtype=torch.complex64),
        "none": torch.zeros(0, 4, dtype=torch.float64),
    }
    save_file(state, tmp_path / "torch.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "torch.safetensors") as source:
        listed = [(tensor.name, tensor.dtype, tensor.shape) for tensor in source.tensors.values()]
    with SafetensorsWriter(tmp_path / "ours.safetensors", listed, {"format": "pt"}) as writer:
        for name, tensor in state.items():
            writer.write(name, tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "torch.safetensors").read_bytes()


@given(metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8), min_size=2, max_size=9))
def test_a_copy_of_a_file_with_several_metadata_entries_is_byte_for_byte(
    library_bytes: Callable[..., bytes], metadata: dict[str, str]
) -> None:
    content = {"a": ("U8", (3,), b"abc")}
    original = library_bytes(content, metadata)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "original.safetensors")
        path.write_bytes(original)
        with SafetensorsFile(path) as file:
            assert file.metadata == metadata
            assert written(content, file.metadata, ["a"]) == original


@pytest.mark.zoo
def test_copies_of_real_models_are_byte_for_byte(zoo: Path, tmp_path: Path) -> None:
    originals = sorted(zoo.glob("*/*.safetensors"))
    assert originals
    for original in originals:
        copy = tmp_path / "copy.safetensors"
        with SafetensorsFile(original) as source:
            listed = [(tensor.name, tensor.dtype, tensor.shape) for tensor in source.tensors.values()]
            with SafetensorsWriter(copy, listed, source.metadata) as writer:
                for name in source.tensors:
                    writer.write(name, source.read(name))
        assert copy.read_bytes() == original.read_bytes(), original
        copy.unlink()


def test_tensors_can_be_written_from_many_threads(tmp_path: Path, library_bytes: Callable[..., bytes]) -> None:
    content = {f"t{index}": ("U8", (1000 + index,), bytes([index]) * (1000 + index)) for index in range(100)}
    listed = [(name, dtype, shape) for name, (dtype, shape, _) in content.items()]
    with SafetensorsWriter(tmp_path / "out.safetensors", listed, {}) as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: writer.write(item[0], item[1][2]), content.items()))
    assert (tmp_path / "out.safetensors").read_bytes() == library_bytes(content)


def test_a_tensor_that_was_not_written_is_noticed_and_the_file_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="'b'"), SafetensorsWriter(path, TWO, {}) as writer:
        writer.write("a", bytes(8))
    assert not path.exists()


def test_an_exception_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    with pytest.raises(KeyError), SafetensorsWriter(path, TWO, {}) as writer:
        writer.write("a", bytes(8))
        raise KeyError
    assert not path.exists()


def test_only_the_listed_tensors_can_be_written_once_and_whole(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "out.safetensors", TWO, {}) as writer:
        writer.write("a", bytes(8))
        with pytest.raises(ValueError, match="already"):
            writer.write("a", bytes(8))
        with pytest.raises(ValueError, match="not to be written"):
            writer.write("c", b"")
        with pytest.raises(ValueError, match="3 bytes, not 4"):
            writer.write("b", bytes(4))
        writer.write("b", bytes(3))


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    path.write_text("mine")
    with pytest.raises(StorageError, match="exists"):
        SafetensorsWriter(path, TWO, {})
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "listed",
    [
        [("a", "F32", (2,)), ("a", "U8", (3,))],
        [("__metadata__", "U8", (1,))],
        [("", "U8", (1,))],
        [("a", "F4", (2,))],
        [("a", "U8", (1,) * 9)],
    ],
)
def test_tensors_that_no_file_can_hold_are_refused(
    tmp_path: Path, listed: list[tuple[str, str, tuple[int, ...]]]
) -> None:
    with pytest.raises(CheckpointError):
        SafetensorsWriter(tmp_path / "out.safetensors", listed, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_the_mode_is_what_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        SafetensorsWriter(tmp_path / "out.safetensors", [], {}).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.safetensors").stat().st_mode) == 0o666 & ~umask


def test_a_tensor_may_be_written_through_a_mapped_region(tmp_path: Path, library_bytes: Callable[..., bytes]) -> None:
    tensors = {"large": ("U8", (100_000,), bytes(range(250)) * 400), "small": ("F32", (1,), b"abcd")}
    listed = [(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()]
    with SafetensorsWriter(tmp_path / "t.safetensors", listed, {}, drop_cache=True) as writer:
        writer.write("small", b"abcd")
        with writer.region("large") as region:
            for start in range(0, 100_000, 4096):
                piece = tensors["large"][2][start : start + 4096]
                region.array[start : start + len(piece)] = memoryview(piece)
                region.release(start, start + len(piece))
        with pytest.raises(ValueError, match="written already"), writer.region("large"):
            pass
    assert (tmp_path / "t.safetensors").read_bytes() == library_bytes(tensors)


def test_a_region_that_was_left_by_an_error_does_not_count_as_written(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "t.safetensors", [("a", "U8", (5000,))], {})
    with pytest.raises(KeyError), writer.region("a"):
        raise KeyError
    with pytest.raises(ValueError, match="not written"):
        writer.close()
    writer.discard()
