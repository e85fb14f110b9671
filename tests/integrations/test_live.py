"""A fine-tune applied to weights in memory, and taken back: on the CPU everywhere, on a GPU where there is one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from pipeline.models import Tensors, base_model, fine_tune, load, write_model

import ddct_format
from ddct_format.errors import BaseMismatchError, ConfigError, UnsupportedError

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


@pytest.mark.parametrize("device", DEVICES)
def test_a_second_buffer_takes_the_fine_tune_and_the_base_stays(archive: Path, device: str) -> None:
    model = on(device, base_model())
    new = ddct_format.apply(model, archive, into=True)
    assert same(model, base_model())
    assert same(new.tensors, load(archive.parent / "unpacked"))
    assert not new.changed
    buffer = {name: torch.zeros_like(tensor) for name, tensor in new.tensors.items()}
    given = ddct_format.apply(model, archive, into=buffer)
    assert same(buffer, load(archive.parent / "unpacked"))
    given.revert()
    assert same(model, base_model())


def test_a_second_buffer_that_does_not_fit_is_refused(archive: Path) -> None:
    model = base_model()
    buffer = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    buffer["head.weight"] = buffer["head.weight"][:-1]
    with pytest.raises(ConfigError, match=r"head\.weight"):
        ddct_format.apply(model, archive, into=buffer)


def ranks(tensors: Tensors, count: int) -> list[dict[str, tuple[slice, ...]]]:
    """Matrices of 32 rows or more by rows, then by columns, in turn: what each of ``count`` ranks holds."""
    matrices = [name for name, tensor in tensors.items() if tensor.dim() == 2 and min(tensor.shape) >= 32]
    held: list[dict[str, tuple[slice, ...]]] = []
    for rank in range(count):
        own = {}
        for number, name in enumerate(matrices):
            size = tensors[name].shape[number % 2]
            cut = slice(size * rank // count, size * (rank + 1) // count)
            own[name] = (cut,) if number % 2 == 0 else (slice(None), cut)
        held.append(own)
    return held


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_every_rank_decodes_its_rows_and_columns(archive: Path, device: str, in_place: bool) -> None:
    full, unpacked = base_model(), load(archive.parent / "unpacked")
    for slices in ranks(full, 3):
        assert slices
        own = on(device, {name: tensor[slices.get(name, ())] for name, tensor in full.items()})
        applied = ddct_format.apply(
            own, archive, slices=slices, check_base="whole", verify="whole", into=None if in_place else True
        )
        wanted = {name: unpacked[name][slices.get(name, ())].contiguous() for name in full}
        assert same(applied.tensors, wanted)
        applied.revert()
        assert same(own, {name: tensor[slices.get(name, ())].contiguous() for name, tensor in full.items()})


def test_a_slice_is_never_checked_silently(archive: Path) -> None:
    slices = {"head.weight": (slice(0, 16),)}
    model = base_model() | {"head.weight": base_model()["head.weight"][:16]}
    with pytest.raises(ConfigError, match=r"head\.weight.*slice"):
        ddct_format.apply(model, archive, slices=slices)
    with pytest.raises(ConfigError, match=r"head\.weight.*slice"):
        ddct_format.apply(model, archive, slices=slices, check_base=False)


@pytest.mark.parametrize("cut", [slice(0, 16, 2), slice(5, 5), slice(0, 10**6), slice(-4, None)])
def test_slices_that_are_no_ranges_are_refused(archive: Path, cut: slice) -> None:
    with pytest.raises(ConfigError, match="no range"):
        ddct_format.apply(base_model(), archive, slices=lambda name, shape: (cut,), check_base=False, verify=False)


def test_a_slice_of_a_lossless_layer_is_refused(tmp_path: Path) -> None:
    base = base_model()
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", fine_tune(base))
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "model.ddct", exact=True)
    model = base | {"head.weight": base["head.weight"][:16]}
    with pytest.raises(UnsupportedError, match=r"head\.weight.*slice"):
        ddct_format.apply(
            model, tmp_path / "model.ddct", slices={"head.weight": (slice(0, 16),)}, check_base=False, verify=False
        )


@pytest.fixture(params=["low rank", "base alone", "lossy first", "narrowed"])
def exact_archive(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A bit-exact archive of tensors that are large enough for a GPU to decode them."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * 0.05

    base = {"wide": normal(200, 401), "tall": normal(520, 96), "vector": normal(40_000), "small": normal(9, 9)}
    step = {name: torch.randn(tensor.shape, generator=random) * 1e-3 for name, tensor in base.items()}
    if request.param == "low rank":
        step = {
            name: normal(len(one), 1) @ normal(1, one[0].numel()) if one.dim() > 1 else one
            for name, one in step.items()
        }
    before = base if request.param == "narrowed" else {name: tensor.bfloat16() for name, tensor in base.items()}
    write_model(tmp_path / "base", before)
    write_model(tmp_path / "tuned", {name: (before[name].float() + step[name]).bfloat16() for name in base})
    lossy = request.param == "lossy first"
    options = {"preset": "paper", "exact": True} if lossy else {"preset": "exact"}
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "model.ddct", **options)
    return tmp_path / "model.ddct"


@pytest.mark.parametrize("into", [None, True])
@pytest.mark.parametrize("device", DEVICES)
def test_an_exact_archive_gives_the_fine_tune_bit_for_bit(exact_archive: Path, device: str, into: bool | None) -> None:
    base, tuned = load(exact_archive.parent / "base"), load(exact_archive.parent / "tuned")
    model = on(device, base)
    model["tall"] = model["tall"].T.contiguous().T  # strided
    if base["wide"].dtype != tuned["wide"].dtype and into is None:
        with pytest.raises(UnsupportedError, match="in place"):
            ddct_format.apply(model, exact_archive)
        return
    applied = ddct_format.apply(model, exact_archive, into=into)
    assert same(applied.tensors, tuned)
    assert same(model, tuned if into is None else base)
    applied.revert()
    assert same(model, base)
