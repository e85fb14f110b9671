"""Too little memory of a device during a live apply: decoded elsewhere, to the same bits, or the base stays whole.

The kernels run through Triton's interpreter on tensors of the CPU, and torch's allocations fail one after another.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline.models import Tensors, base_model, fine_tune, load, write_model
from torch.utils._python_dispatch import TorchDispatchMode

import ddct_format
from ddct_format.errors import BudgetError
from ddct_format.integrations import live

pytest.importorskip("triton", reason="no Triton")
pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="a GPU is here: Triton does not interpret"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # numpy, under the interpreter
]

ALLOCATING = ("empty", "zeros", "clone", "_to_copy", "arange", "sort", "cumsum", "full")


class Shortage(TorchDispatchMode):
    """Allocations of the calling thread fail, as on a full device, from number ``first`` on, ``count`` of them."""

    def __init__(self, first: int, count: int = 1) -> None:
        super().__init__()
        self.failing = range(first, first + count)
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__.startswith(ALLOCATING) and args[0] != [0]:
            self.seen += 1
            if self.seen - 1 in self.failing:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["balanced", "lossy and exact"])
def archive(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = model()
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", fine_tune(base))
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "model.ddct", exact=request.param != "balanced")
    ddct_format.unpack(tmp_path / "model.ddct", tmp_path / "base", tmp_path / "unpacked")
    monkeypatch.setattr(live, "_is_resident", lambda tensor: True)
    return tmp_path / "model.ddct"


def model() -> Tensors:
    return {"head.weight": base_model()["head.weight"][:40, :33].contiguous(), "steps": torch.arange(5)}


def strided(tensors: Tensors) -> Tensors:
    return {
        name: tensor.T.contiguous().T if name == "head.weight" else tensor.clone() for name, tensor in tensors.items()
    }


def same(ours: Tensors, theirs: Tensors) -> bool:
    return all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("into", [None, True])
def test_without_any_memory_left_it_is_refused_and_the_base_stays(archive: Path, into: bool | None) -> None:
    ours = strided(model())
    with Shortage(0, 10**9), pytest.raises(BudgetError) as refusal:
        ddct_format.apply(ours, archive, into=into)
    assert refusal.value.place == str(archive)
    assert refusal.value.tensor in ours
    assert same(ours, model())


@pytest.mark.parametrize("into", [None, True])
def test_whichever_allocation_fails_the_bits_are_the_same_or_the_base_is(
    archive: Path, into: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = live._apply_on_device
    outcomes: list[bool] = []

    def watched(*arguments: Any) -> bool:
        outcomes.append(apply(*arguments))
        return outcomes[-1]

    monkeypatch.setattr(live, "_apply_on_device", watched)
    tuned = load(archive.parent / "unpacked")
    refused = first = 0
    while True:
        ours = strided(model())
        try:
            with Shortage(first) as shortage:
                applied = ddct_format.apply(ours, archive, into=into)
        except BudgetError as error:
            assert error.place == str(archive)
            assert error.tensor in ours
            assert same(ours, model())
            refused += 1
        else:
            assert same(applied.tensors, tuned)
            assert same(ours, model() if into else tuned)
            applied.revert()
            assert same(ours, model())
        if shortage.seen <= first:
            break
        first += 1
    assert outcomes.count(False) > 5
    assert True in outcomes
    assert refused <= 2
