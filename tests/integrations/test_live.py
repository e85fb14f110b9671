"""A fine-tune applied to weights in memory, and taken back: on the CPU everywhere, on a GPU where there is one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from pipeline.models import Tensors, base_model, fine_tune, load, write_model

import ddct_format
from ddct_format.errors import BaseMismatchError, ConfigError, UnsupportedError
from ddct_format.integrations import live

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


@pytest.fixture
def untied(tmp_path: Path) -> tuple[Path, Tensors]:
    """An archive of a fine-tune of one of two equal tensors, and its base."""
    embed = torch.randn(64, 48).bfloat16()
    base = {"embed.weight": embed, "head.weight": embed.clone()}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", base | fine_tune({"embed.weight": embed}))
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "model.ddct")
    return tmp_path / "model.ddct", base


def test_tied_weights_that_the_fine_tune_does_not_tie_are_refused(untied: tuple[Path, Tensors]) -> None:
    """The head stays as the base in the fine-tune; tied to the embedding it would change with it."""
    archive, base = untied
    model = {"embed.weight": base["embed.weight"].clone()}
    model["head.weight"] = model["embed.weight"]
    with pytest.raises(UnsupportedError, match=r"head\.weight.*shares memory with 'embed\.weight'"):
        ddct_format.apply(model, archive)
    assert same(model, base)
    new = ddct_format.apply(model, archive, into=True)
    assert torch.equal(new.tensors["head.weight"], base["head.weight"])
    assert not torch.equal(new.tensors["embed.weight"], base["embed.weight"])


def test_weights_may_be_columns_of_one_tensor(untied: tuple[Path, Tensors]) -> None:
    archive, base = untied
    both = torch.cat([base["embed.weight"], base["head.weight"]], dim=1)
    model = {"embed.weight": both[:, :48], "head.weight": both[:, 48:]}
    assert ddct_format.apply(model, archive).changed == ["embed.weight"]
    assert torch.equal(both[:, 48:], base["head.weight"])
    with pytest.raises(UnsupportedError, match="shares memory"):
        ddct_format.apply({"embed.weight": both[:, 8:56], "head.weight": both[:, 48:]}, archive, check_base=False)


def test_what_is_kept_of_an_unchecked_base_is_verified_too(untied: tuple[Path, Tensors]) -> None:
    archive, base = untied
    other = base | {"head.weight": base["head.weight"] + 1}
    model = on("cpu", other)
    with pytest.raises(ddct_format.errors.CorruptError, match=r"head\.weight"):
        ddct_format.apply(model, archive, check_base=False)
    assert same(model, other)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(1, dtype=torch.bfloat16).expand(64), "share memory"),
        (torch.empty(64, dtype=torch.bfloat16, device="meta"), "meta"),
        (torch.ones(64, dtype=torch.bfloat16).to_sparse(), "sparse"),
        (torch.ones(64, dtype=torch.bfloat16).as_subclass(type("Other", (torch.Tensor,), {})), "Other"),
    ],
)
def test_tensors_that_cannot_be_changed_are_refused_before_any_other_is(
    archive: Path, tensor: torch.Tensor, reason: str
) -> None:
    model = base_model() | {"norm.weight": tensor}
    with pytest.raises(ConfigError, match=rf"norm\.weight.*{reason}"):
        ddct_format.apply(model, archive)
    del model["norm.weight"]
    assert same(base_model(), model)


def test_a_module_that_hands_out_copies_is_refused(archive: Path) -> None:
    class Copies(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.nn.ParameterDict(base_model_floats())
            self.register_state_dict_post_hook(lambda module, state, prefix, metadata: state.update(base_model()))

    with pytest.raises(ConfigError, match="a copy"):
        ddct_format.apply(Copies(), archive)


def base_model_floats() -> Tensors:
    return {name.replace(".", "_"): tensor for name, tensor in base_model().items() if tensor.is_floating_point()}


def test_applying_twice_is_refused_and_leaves_what_was_applied(archive: Path) -> None:
    model = base_model()
    applied = ddct_format.apply(model, archive)
    with pytest.raises(BaseMismatchError, match="other contents"):
        ddct_format.apply(model, archive)
    with pytest.raises(ddct_format.errors.CorruptError):
        ddct_format.apply(model, archive, check_base=False)
    assert same(model, load(archive.parent / "unpacked"))
    applied.revert()
    applied.revert()
    assert same(model, base_model())


def test_tensors_that_the_archive_does_not_name_are_left_alone(archive: Path) -> None:
    model = base_model() | {"more": torch.ones(3)}
    assert "more" not in ddct_format.apply(model, archive).tensors
    assert torch.equal(model["more"], torch.ones(3))


@pytest.mark.parametrize("keep_base", ["meta", "elsewhere"])
def test_copies_are_kept_where_they_can_be_kept(archive: Path, keep_base: str) -> None:
    model = base_model()
    with pytest.raises(ConfigError, match="keep_base"):
        ddct_format.apply(model, archive, keep_base=keep_base)
    assert same(model, base_model())


def test_a_revert_that_fails_can_be_repeated(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base_model()
    applied = ddct_format.apply(model, archive)
    copy, calls = live._copy, []

    def failing(target: torch.Tensor, source: torch.Tensor) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        copy(target, source)

    monkeypatch.setattr(live, "_copy", failing)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        applied.revert()
    assert not same(model, base_model())
    applied.revert()
    assert same(model, base_model())


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


def test_a_second_buffer_over_the_base_or_itself_is_refused(archive: Path) -> None:
    model = base_model()
    with pytest.raises(ConfigError, match="shares memory"):
        ddct_format.apply(model, archive, into=model)
    assert same(model, base_model())
    buffer = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    buffer["norm.weight"] = buffer["embed.weight"][0]
    with pytest.raises(ConfigError, match="shares memory"):
        ddct_format.apply(model, archive, into=buffer)


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


def test_an_alias_of_another_slice_is_refused(tmp_path: Path) -> None:
    embed = torch.randn(64, 48).bfloat16()
    tuned = fine_tune({"embed.weight": embed})["embed.weight"]
    write_model(tmp_path / "base", {"embed.weight": embed, "head.weight": embed.clone()})
    write_model(tmp_path / "tuned", {"embed.weight": tuned, "head.weight": tuned.clone()})
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "model.ddct")
    unpacked = ddct_format.unpack(tmp_path / "model.ddct", tmp_path / "base", tmp_path / "unpacked")
    assert unpacked.applied == 2

    def held(embed_rows: slice, head_rows: slice) -> Tensors:
        model = {"embed.weight": embed[embed_rows].clone(), "head.weight": embed[head_rows].clone()}
        slices = {"embed.weight": (embed_rows,), "head.weight": (head_rows,)}
        ddct_format.apply(model, tmp_path / "model.ddct", slices=slices, check_base=False, verify=False)
        return model

    with pytest.raises(UnsupportedError, match=r"head\.weight.*another slice"):
        held(slice(0, 16), slice(16, 32))
    rows = slice(16, 32)
    assert torch.equal(held(slice(0, 48), rows)["head.weight"], load(tmp_path / "unpacked")["head.weight"][rows])


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


def test_a_limit_of_gpu_memory_holds_for_what_is_taken_beside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device of 100 GiB, on which the process holds 40."""
    device_module = pytest.importorskip("ddct_format.backends.cuda.device", reason="no Triton")
    device, fractions = torch.device("cuda", 0), [0.9]
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: fractions[-1])
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: fractions.append(fraction)
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40 << 30)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Properties", (), {"total_memory": 100 << 30})
    )
    with device_module.limited_growth([device]):
        assert fractions == [0.9]  # nothing said, nothing limited
    monkeypatch.setenv("DDCT_GPU_MEMORY", "2G")
    with pytest.raises(KeyError), device_module.limited_growth([device]):
        assert fractions[-1] == pytest.approx(0.42)
        raise KeyError
    assert fractions[-1] == 0.9
    monkeypatch.setenv("DDCT_GPU_MEMORY", "much")
    with pytest.raises(ConfigError, match="DDCT_GPU_MEMORY"), device_module.limited_growth([device]):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_that_may_give_next_to_nothing_gives_the_same_bits(
    exact_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = load(exact_archive.parent / "base"), load(exact_archive.parent / "tuned")
    model = on("cuda", base)
    torch.cuda.empty_cache()
    monkeypatch.setenv("DDCT_GPU_MEMORY", "4K")
    before = torch.cuda.memory_reserved()
    applied = ddct_format.apply(model, exact_archive, into={name: torch.empty_like(t) for name, t in tuned.items()})
    assert torch.cuda.memory_reserved() <= before + (4 << 10)
    assert same(applied.tensors, tuned)
