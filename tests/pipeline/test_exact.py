"""Lossless archives: bit for bit, in one layer or two, and what a truncated one still gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import base_model, fine_tune, load, write_model

from ddct_format import errors, open_archive, open_checkpoint, pack, unpack, verify


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("preset", "exact"), [("exact", False), ("exact", True), ("paper", True)])
def test_an_exact_archive_restores_every_file(tmp_path: Path, dtype: torch.dtype, preset: str, exact: bool) -> None:
    base = write_model(tmp_path / "base", base_model(dtype))
    tuned = write_model(tmp_path / "tuned", fine_tune(base_model(dtype)), tokenizer_json="{}")
    report = pack(base, tuned, tmp_path / "t.ddct", preset=preset, exact=exact)
    assert report.target_id == report.exact_id
    assert report.error == 0
    result = unpack(tmp_path / "t.ddct", base, tmp_path / "out", exact=True)
    assert result.lossless and result.target_id == report.exact_id
    assert same_files(tuned, tmp_path / "out")
    for device in ("cpu", "reference"):
        assert verify(tmp_path / "t.ddct", base, device=device).lossless


def test_the_lossy_layer_comes_first_and_is_the_presets_own(tmp_path: Path, base: Path, tuned: Path) -> None:
    lossy = pack(base, tuned, tmp_path / "lossy.ddct", preset="paper")
    exact = pack(base, tuned, tmp_path / "exact.ddct", preset="paper", exact=True)
    assert lossy.file_size < exact.file_size
    result = unpack(tmp_path / "exact.ddct", base, tmp_path / "prefix", lossy=True)
    assert not result.lossless
    with open_archive(tmp_path / "exact.ddct") as opened:
        ids = opened.metadata.target_ids
        assert len(ids) == 2 and ids[-1] == opened.metadata.exact_id
        assert [layer.codec for layer in opened.tensors["embed.weight"].layers] == ["dctq.v1", "ulp.v1"]
    assert result.target_id == ids[0] == lossy.target_id
    unpack(tmp_path / "lossy.ddct", base, tmp_path / "whole")
    assert same_files(tmp_path / "prefix", tmp_path / "whole")


def test_one_layer_of_one_tensor_can_be_asked_for(tmp_path: Path, base: Path, tuned: Path) -> None:
    pack(base, tuned, tmp_path / "t.ddct", preset="paper", exact=True)
    with open_archive(tmp_path / "t.ddct") as opened, open_checkpoint(base) as base_model_:
        first = opened.decode("embed.weight", base_model_, layers=1)
        whole = opened.decode("embed.weight", base_model_)
    wanted = load(tuned)["embed.weight"].view(torch.uint8).reshape(-1)
    assert whole.tolist() == wanted.tolist() and first.tolist() != whole.tolist()


def test_a_truncated_archive_unpacks_lossy_when_asked_and_only_then(tmp_path: Path, base: Path, tuned: Path) -> None:
    pack(base, tuned, tmp_path / "t.ddct", preset="paper", exact=True)
    data = (tmp_path / "t.ddct").read_bytes()
    with open_archive(tmp_path / "t.ddct") as opened:
        second = sum(opened.reader.stored_size(name) for name in opened.tensors)
        for record in opened.tensors.values():
            second -= opened.reader.stored_size(record.name) if len(record.layers) < 2 else 0
    cut = tmp_path / "cut.ddct"
    outcomes = set()
    for length in [len(data) - 1, *range(70, len(data), len(data) // 40)]:
        cut.write_bytes(data[:length])
        with pytest.raises(errors.TruncatedError) as caught:
            unpack(cut, base, tmp_path / "out")
        offered = "--lossy" in str(caught.value)
        outcomes.add(offered)
        if offered:
            out = tmp_path / f"out{length}"
            assert not unpack(cut, base, out, lossy=True).lossless
            assert (out / "config.json").read_bytes() == (tuned / "config.json").read_bytes()
        else:
            with pytest.raises(errors.TruncatedError):
                unpack(cut, base, tmp_path / "out", lossy=True)
        with pytest.raises(errors.TruncatedError):
            verify(cut)
    assert outcomes == {True, False}
    assert not (tmp_path / "out").exists()


def test_a_damaged_first_layer_is_refused_lossy_too(tmp_path: Path, base: Path, tuned: Path) -> None:
    pack(base, tuned, tmp_path / "t.ddct", preset="paper", exact=True)
    data = bytearray((tmp_path / "t.ddct").read_bytes())
    with open_archive(tmp_path / "t.ddct") as opened:
        data[opened.reader.preamble.chunks_offset + 50] ^= 1
    (tmp_path / "t.ddct").write_bytes(data[:-1])
    with pytest.raises(errors.CorruptError):
        unpack(tmp_path / "t.ddct", base, tmp_path / "out", lossy=True)
    assert not (tmp_path / "out").exists()


def test_exact_is_refused_of_a_lossy_archive(tmp_path: Path, base: Path, archive: Path) -> None:
    with pytest.raises(errors.ConfigError, match="exact"):
        unpack(archive, base, tmp_path / "out", exact=True)
    with pytest.raises(errors.ConfigError):
        unpack(archive, base, tmp_path / "out", exact=True, lossy=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("preset", "exact"), [("exact", False), ("paper", True)])
def test_nan_infinity_and_minus_zero_come_back(tmp_path: Path, preset: str, exact: bool) -> None:
    base_tensors = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), "v": torch.zeros(64, 64)}
    tuned_tensors = fine_tune(base_tensors)
    bits = tuned_tensors["w"].view(torch.int32)
    for place, pattern in enumerate((0x7F800001, 0x7FC01234, -1, 0x7F800000, -0x800000, -0x80000000)):
        bits[place, 3] = pattern
    tuned_tensors["v"] = -base_tensors["v"]
    base, tuned = write_model(tmp_path / "base", base_tensors), write_model(tmp_path / "tuned", tuned_tensors)
    pack(base, tuned, tmp_path / "t.ddct", preset=preset, exact=exact)
    unpack(tmp_path / "t.ddct", base, tmp_path / "out", exact=True)
    assert same_files(tuned, tmp_path / "out")


@pytest.mark.parametrize(
    "types", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16,) * 2]
)
def test_types_and_shapes_may_differ_from_the_bases(tmp_path: Path, types: tuple[torch.dtype, torch.dtype]) -> None:
    base_tensors = base_model(types[0])
    tuned_tensors = {
        name: tensor.to(types[1]) if tensor.is_floating_point() else tensor
        for name, tensor in fine_tune(base_tensors).items()
    }
    tuned_tensors["embed.weight"] = torch.cat([tuned_tensors["embed.weight"], torch.ones(3, 64, dtype=types[1])])
    base, tuned = write_model(tmp_path / "base", base_tensors), write_model(tmp_path / "tuned", tuned_tensors)
    pack(base, tuned, tmp_path / "t.ddct", preset="exact")
    unpack(tmp_path / "t.ddct", base, tmp_path / "out", exact=True)
    assert same_files(tuned, tmp_path / "out")


def test_shared_directions_are_sent_once(tmp_path: Path) -> None:
    """A change of rank 4 under a little noise: the prediction takes most of its bits."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 256, generator=random) * 0.05
    shared = torch.randn(256, 4, generator=random) @ torch.randn(4, 256, generator=random) * 0.01
    change = shared + torch.randn(256, 256, generator=random) * 1e-4
    base = write_model(tmp_path / "base", {"w": weight.bfloat16()})
    tuned = write_model(tmp_path / "tuned", {"w": (weight.bfloat16().float() + change).bfloat16()})
    report = pack(base, tuned, tmp_path / "t.ddct", preset="exact")
    with open_archive(tmp_path / "t.ddct") as opened:
        assert [layer.codec for layer in opened.tensors["w"].layers] == ["dctq.v1", "ulp.v1"]
    assert report.bits_per_weight < 3.5


@pytest.mark.zoo
@pytest.mark.parametrize(("base_name", "tuned_name"), [("base-vit", "vit-mnist")])
def test_real_models_come_back_bit_for_bit(zoo: Path, tmp_path: Path, base_name: str, tuned_name: str) -> None:
    report = pack(zoo / base_name, zoo / tuned_name, tmp_path / "t.ddct", preset="exact", verify=False)
    unpack(tmp_path / "t.ddct", zoo / base_name, tmp_path / "out", exact=True)
    assert same_files(zoo / tuned_name, tmp_path / "out")
    assert report.file_size < 0.4 * report.original_size
