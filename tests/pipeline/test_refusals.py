"""Bad input: one clear error of the right class, and nothing left behind under any name."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import base_model, fine_tune, write_model

from ddct_format import errors, pack, unpack, verify


def listing(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_another_base_is_refused_before_anything_appears(tmp_path: Path, base: Path, archive: Path) -> None:
    other = write_model(tmp_path / "other", base_model(seed=9))
    before = listing(tmp_path)
    with pytest.raises(errors.BaseMismatchError, match="other contents") as caught:
        unpack(archive, other, tmp_path / "out")
    assert caught.value.tensor in base_model()  # all differ, and any may be reported (spec, section 9)
    assert caught.value.place == str(other)
    with pytest.raises(errors.BaseMismatchError):
        verify(archive, other)
    assert listing(tmp_path) == before


def test_a_base_that_differs_in_one_bit_is_refused(tmp_path: Path, base: Path, archive: Path) -> None:
    tensors = base_model()
    tensors["experts.weight"].view(torch.int16)[2, 39, 31] ^= 1
    other = write_model(tmp_path / "other", tensors)
    with pytest.raises(errors.BaseMismatchError) as caught:
        unpack(archive, other, tmp_path / "out")
    assert caught.value.tensor == "experts.weight"


def test_a_missing_base_tensor_is_named(tmp_path: Path, archive: Path) -> None:
    tensors = base_model()
    del tensors["head.weight"]
    with pytest.raises(errors.BaseMismatchError, match="lacks") as caught:
        unpack(archive, write_model(tmp_path / "other", tensors), tmp_path / "out")
    assert caught.value.tensor == "head.weight"


def test_a_base_tensor_of_another_shape_or_type_is_named(tmp_path: Path, archive: Path) -> None:
    for change in (lambda t: t[:, :40].contiguous(), lambda t: t.float()):
        tensors = base_model()
        tensors["head.weight"] = change(tensors["head.weight"])
        directory = tmp_path / f"other{len(list(tmp_path.iterdir()))}"
        with pytest.raises(errors.BaseMismatchError, match="was made for") as caught:
            unpack(archive, write_model(directory, tensors), tmp_path / "out")
        assert caught.value.tensor == "head.weight"


def test_a_truncated_archive_is_refused_at_any_length(tmp_path: Path, base: Path, archive: Path) -> None:
    data = archive.read_bytes()
    cut = tmp_path / "cut.ddct"
    for length in sorted(random.Random(0).sample(range(8, len(data)), 60)):
        cut.write_bytes(data[:length])
        with pytest.raises(errors.TruncatedError):
            unpack(cut, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path, base: Path, archive: Path) -> None:
    data = archive.read_bytes()
    damaged = tmp_path / "damaged.ddct"
    for place in sorted(random.Random(0).sample(range(len(data)), 60)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        damaged.write_bytes(flipped)
        with pytest.raises(errors.ArchiveError):
            unpack(damaged, base, tmp_path / "out")
        with pytest.raises(errors.ArchiveError):
            verify(damaged)
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_never_touched(tmp_path: Path, base: Path, tuned: Path, archive: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(errors.OutputExistsError):
        unpack(archive, base, tmp_path / "out")
    data = archive.read_bytes()
    with pytest.raises(errors.OutputExistsError):
        pack(base, tuned, archive)
    assert archive.read_bytes() == data
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_what_is_no_model_is_refused(tmp_path: Path, base: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    for bad in ("empty", "pickled", "absent"):
        with pytest.raises(errors.DdctError) as caught:
            pack(base, tmp_path / bad, tmp_path / "x.ddct")
        assert caught.value.code in ("checkpoint", "storage")
        assert bad in str(caught.value)
    assert not (tmp_path / "x.ddct").exists()


def test_what_is_no_archive_is_refused(tmp_path: Path, base: Path) -> None:
    (tmp_path / "x.ddct").write_text("This is not the file that you are looking for. " * 10)
    with pytest.raises(errors.InvalidError, match="not a ddct file"):
        verify(tmp_path / "x.ddct")
    with pytest.raises(errors.StorageError):
        verify(tmp_path / "absent.ddct")


def test_an_unreadable_file_is_a_storage_error(tmp_path: Path, base: Path, tuned: Path) -> None:
    """A link to itself cannot be opened by anyone, root included."""
    (tuned / "model.safetensors").unlink()
    (tuned / "model.safetensors").symlink_to(tuned / "model.safetensors")
    with pytest.raises(errors.DdctError) as caught:
        pack(base, tuned, tmp_path / "x.ddct")
    assert caught.value.code in ("storage", "checkpoint")
    assert "model.safetensors" in str(caught.value)


NO_SPACE = """
import resource, signal, sys
from ddct_format import errors, pack, unpack
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
command, size = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    {"pack": pack, "unpack": unpack}[command](*sys.argv[3:])
except errors.StorageError:
    sys.exit(77)
"""


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_no_space_leaves_nothing(tmp_path: Path, base: Path, tuned: Path, archive: Path, command: str) -> None:
    """A limit on file sizes stands in for a full disk: write() fails in the middle of the output."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = {
        "pack": ["2000", str(base), str(tuned), str(tmp_path / "x.ddct")],
        "unpack": ["20000", str(archive), str(base), str(tmp_path / "out")],
    }[command]
    before = listing(tmp_path)
    result = subprocess.run([sys.executable, "-c", NO_SPACE, command, *arguments], check=False)
    assert result.returncode == 77
    assert listing(tmp_path) == before


def test_a_checkpoint_that_changes_while_it_is_read_is_discarded(tmp_path: Path, base: Path, tuned: Path) -> None:
    changed = fine_tune(base_model(), seed=5)
    before = listing(tmp_path)

    def rewrite(done: int, total: int, what: str) -> None:
        if what == "packing" and done == total:
            from safetensors.torch import save_file

            save_file(changed, tuned / "model.safetensors", {"format": "pt"})

    with pytest.raises(errors.CheckpointError, match="chang"):
        pack(base, tuned, tmp_path / "x.ddct", progress=rewrite)
    assert listing(tmp_path) == before


def test_a_cancelled_pack_leaves_nothing(tmp_path: Path, base: Path, tuned: Path) -> None:
    before = listing(tmp_path)

    def cancel(done: int, total: int, what: str) -> None:
        if what == "packing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(base, tuned, tmp_path / "x.ddct", progress=cancel)
    assert listing(tmp_path) == before
