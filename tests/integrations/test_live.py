"""A fine-tune applied to weights in memory, and taken back: on the CPU everywhere, on a GPU where there is one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from pipeline.models import Tensors, base_model, fine_tune, load, write_model

import ddct_format
from ddct_format.errors import BaseMismatchError

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available() or importlib.util.find_spec("triton") is None, reason="no CUDA device"
            ),
        ],
    ),
]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    base = base_model()
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", fine_tune(base))
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "model.ddct")
    ddct_format.unpack(tmp_path / "model.ddct", tmp_path / "base", tmp_path / "unpacked")
    return tmp_path / "model.ddct"


def on(device: str, tensors: Tensors) -> Tensors:
    return {name: tensor.to(device).clone() for name, tensor in tensors.items()}


def same(ours: Tensors, theirs: Tensors) -> bool:
    return all(
        torch.equal(ours[name].cpu().reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        for name, tensor in theirs.items()
        if tensor.numel()
    )


@pytest.mark.parametrize("device", DEVICES)
def test_applying_gives_what_unpacking_gives_and_reverting_gives_the_base(archive: Path, device: str) -> None:
    model = on(device, base_model())
    applied = ddct_format.apply(model, archive)
    assert applied.changed
    assert same(model, load(archive.parent / "unpacked"))
    applied.revert()
    assert same(model, base_model())


@pytest.mark.parametrize("device", DEVICES)
def test_tied_weights_and_strided_weights_are_changed_in_place(tmp_path: Path, device: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(64, 48, dtype=torch.bfloat16)
            self.head = torch.nn.Linear(48, 64, bias=False, dtype=torch.bfloat16)
            self.head.weight = self.embed.weight
            self.other = torch.nn.Parameter(torch.randn(48, 40).bfloat16().T)

    module = Model().to(device)
    base = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
    tuned = fine_tune({"embed.weight": base["embed.weight"], "other": base["other"]})
    tuned["head.weight"] = tuned["embed.weight"].clone()
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", tuned)
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "model.ddct")
    ddct_format.unpack(tmp_path / "model.ddct", tmp_path / "base", tmp_path / "unpacked")
    applied = ddct_format.apply(module, tmp_path / "model.ddct")
    assert same(dict(module.state_dict()), load(tmp_path / "unpacked"))
    assert module.head.weight is module.embed.weight
    applied.revert()
    assert same(dict(module.state_dict()), base)


def test_a_missing_tensor_is_a_base_mismatch(archive: Path) -> None:
    model = base_model()
    del model["head.weight"]
    with pytest.raises(BaseMismatchError, match=r"head\.weight.*lacks"):
        ddct_format.apply(model, archive)


def test_another_type_is_a_base_mismatch(archive: Path) -> None:
    model = base_model() | {"head.weight": base_model()["head.weight"].half()}
    with pytest.raises(BaseMismatchError, match=r"head\.weight.*float16"):
        ddct_format.apply(model, archive)


@pytest.mark.parametrize("device", DEVICES)
def test_other_contents_are_refused_before_anything_changes(archive: Path, device: str) -> None:
    other = base_model()
    other["head.weight"][0, 0] += 1
    model = on(device, other)
    with pytest.raises(BaseMismatchError, match=r"head\.weight.*other contents"):
        ddct_format.apply(model, archive)
    assert same(model, other)


@pytest.mark.parametrize("device", DEVICES)
def test_a_wrong_result_is_refused_and_the_base_restored(archive: Path, device: str) -> None:
    other = base_model()
    other["embed.weight"][5, 5] += 1
    model = on(device, other)
    with pytest.raises(ddct_format.errors.CorruptError, match="embed"):
        ddct_format.apply(model, archive, check_base=False)
    assert same(model, other)
