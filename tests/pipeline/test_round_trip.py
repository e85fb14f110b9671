"""unpack(pack(x)): which tensors come back exactly, which as a change, and that the result is the promised one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import base_model, fine_tune, load, write_model
from safetensors.torch import save_file

from ddct_format import open_archive, open_checkpoint, pack, unpack, verify


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("preset", ["paper", "paper-mix"])
def test_a_fine_tune_survives_the_round_trip(tmp_path: Path, dtype: torch.dtype, preset: str) -> None:
    base_tensors = base_model(dtype)
    tuned_tensors = fine_tune(base_tensors)
    base = write_model(tmp_path / "base", base_tensors)
    tuned = write_model(tmp_path / "tuned", tuned_tensors, tokenizer_json='{"x": 1}')
    report = pack(base, tuned, tmp_path / "t.ddct", preset=preset)
    result = unpack(tmp_path / "t.ddct", base, tmp_path / "out")
    decoded = load(tmp_path / "out")

    assert result.applied == result.tensors == len(tuned_tensors)
    same = sum(torch.equal(tuned_tensors[name], base_tensors[name]) for name in base_tensors)
    assert report.counts == {"add": 4, "keep": same, "replace": len(tuned_tensors) - 4 - same}
    assert set(decoded) == set(tuned_tensors)
    for name in ("norm.weight", "scalar", "steps", "thin.weight", "unused"):
        assert torch.equal(decoded[name], tuned_tensors[name])
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"x": 1}'
    assert (tmp_path / "out" / "config.json").read_bytes() == (tuned / "config.json").read_bytes()
    assert report.file_size == (tmp_path / "t.ddct").stat().st_size
    assert report.error is not None
    assert report.error == pytest.approx(measured_error(base_tensors, tuned_tensors, decoded), rel=1e-6)


def measured_error(
    base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], decoded: dict[str, torch.Tensor]
) -> float:
    names = ("conv.weight", "embed.weight", "experts.weight", "head.weight")
    noise = sum((tuned[n].double() - decoded[n].double()).square().sum() for n in names)
    energy = sum((tuned[n].double() - base[n].double()).square().sum() for n in names)
    return float(noise / energy)


def test_the_papers_decoder_keeps_the_mean_absolute_delta(tmp_path: Path) -> None:
    """Section 3.4 of the paper: the decoded delta is rescaled to the layer's mean absolute delta."""
    base_tensors = {"w": torch.randn(256, 256, generator=torch.Generator().manual_seed(0))}
    tuned_tensors = fine_tune(base_tensors)
    base, tuned = write_model(tmp_path / "b", base_tensors), write_model(tmp_path / "t", tuned_tensors)
    pack(base, tuned, tmp_path / "t.ddct", preset="paper")
    unpack(tmp_path / "t.ddct", tmp_path / "b", tmp_path / "out")
    wanted = (tuned_tensors["w"] - base_tensors["w"]).abs().mean()
    assert float((load(tmp_path / "out")["w"] - base_tensors["w"]).abs().mean()) == pytest.approx(
        float(wanted), rel=1e-3
    )


@pytest.mark.parametrize(("preset", "shares"), [("paper", (0.5, 0.5)), ("paper-mix", (0.3, 0.4, 0.3))])
def test_the_strongest_patches_get_the_bits(tmp_path: Path, preset: str, shares: tuple[float, ...]) -> None:
    import numpy as np

    from ddct_format.codec.dctq import DctqParams, parse_payload

    base_tensors = {"w": torch.zeros(320, 160)}
    strength = torch.arange(200.0).reshape(20, 10).repeat_interleave(16, 0).repeat_interleave(16, 1)
    noise = torch.randn(320, 160, generator=torch.Generator().manual_seed(0)).sign() * strength
    pack(
        write_model(tmp_path / "b", base_tensors),
        write_model(tmp_path / "t", {"w": noise}),
        tmp_path / "t.ddct",
        preset=preset,
    )
    with open_archive(tmp_path / "t.ddct") as opened:
        params = DctqParams.parse(opened.tensors["w"].layers[0].params, 320 * 160)
        payload = parse_payload(params, np.frombuffer(opened.reader.payload("w", 0), dtype=np.uint8))
    assert params.alphabets == ((1, 4) if preset == "paper" else (1, 2, 4))
    assert [int((payload.class_map == number).sum()) for number in range(len(shares))] == [
        round(200 * share) for share in reversed(shares)
    ]
    assert (np.diff(payload.class_map.astype(int)) >= 0).all()


def test_every_backend_decodes_every_tensor_to_the_promised_digest(base: Path, archive: Path) -> None:
    for device in ("auto", "cpu", "reference"):
        report = verify(archive, base, device=device)
        assert report.decoded == report.tensors


def test_packing_twice_gives_the_same_bytes(tmp_path: Path, base: Path, tuned: Path) -> None:
    pack(base, tuned, tmp_path / "one.ddct", threads=1)
    pack(base, tuned, tmp_path / "two.ddct", threads=3)
    assert (tmp_path / "one.ddct").read_bytes() == (tmp_path / "two.ddct").read_bytes()


def test_an_unchanged_model_is_kept_and_lossless(tmp_path: Path, base: Path) -> None:
    report = pack(base, base, tmp_path / "same.ddct")
    assert set(report.counts) == {"keep"}
    assert report.target_id == report.exact_id == report.base_id
    assert unpack(tmp_path / "same.ddct", base, tmp_path / "out").lossless
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_new_removed_and_reshaped_tensors(tmp_path: Path) -> None:
    base_tensors = base_model()
    tuned_tensors = fine_tune(base_tensors)
    del tuned_tensors["conv.weight"]
    tuned_tensors["embed.weight"] = torch.randn(140, 64).bfloat16()
    tuned_tensors["new.weight"] = torch.randn(32, 32).bfloat16()
    base, tuned = write_model(tmp_path / "b", base_tensors), write_model(tmp_path / "t", tuned_tensors)
    pack(base, tuned, tmp_path / "t.ddct")
    unpack(tmp_path / "t.ddct", base, tmp_path / "out")
    decoded = load(tmp_path / "out")
    assert set(decoded) == set(tuned_tensors)
    assert torch.equal(decoded["embed.weight"], tuned_tensors["embed.weight"])
    assert torch.equal(decoded["new.weight"], tuned_tensors["new.weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["base", "tuned"])
def test_a_tensor_with_nan_or_inf_is_carried_exactly(tmp_path: Path, bad: float, where: str) -> None:
    base_tensors = {"w": torch.randn(64, 64)}
    tuned_tensors = fine_tune(base_tensors)
    {"base": base_tensors, "tuned": tuned_tensors}[where]["w"][3, 4] = bad
    base, tuned = write_model(tmp_path / "b", base_tensors), write_model(tmp_path / "t", tuned_tensors)
    assert pack(base, tuned, tmp_path / "t.ddct").counts == {"replace": 1}
    unpack(tmp_path / "t.ddct", base, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")["w"].view(torch.int32), tuned_tensors["w"].view(torch.int32))


def test_a_sum_that_would_overflow_is_carried_exactly(tmp_path: Path) -> None:
    base_tensors = {"w": torch.full((64, 64), 65000.0, dtype=torch.float16)}
    tuned_tensors = {"w": base_tensors["w"] + torch.randint(0, 2, (64, 64)) * 500}
    base, tuned = write_model(tmp_path / "b", base_tensors), write_model(tmp_path / "t", tuned_tensors)
    pack(base, tuned, tmp_path / "t.ddct")
    unpack(tmp_path / "t.ddct", base, tmp_path / "out")
    assert load(tmp_path / "out")["w"].isfinite().all()


def test_another_element_type_than_the_bases(tmp_path: Path) -> None:
    base_tensors = base_model(torch.float32)
    tuned_tensors = {name: t.bfloat16() for name, t in fine_tune(base_tensors).items() if t.is_floating_point()}
    base, tuned = write_model(tmp_path / "b", base_tensors), write_model(tmp_path / "t", tuned_tensors)
    report = pack(base, tuned, tmp_path / "t.ddct")
    assert report.counts["add"] == 6
    unpack(tmp_path / "t.ddct", base, tmp_path / "out")
    assert all(tensor.dtype is torch.bfloat16 for tensor in load(tmp_path / "out").values())


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    base_tensors = {"a": torch.randn(64, 64), "z": torch.randn(64, 64)}
    weight = torch.randn(64, 64)
    base = write_model(tmp_path / "b", base_tensors)
    tuned = write_model(tmp_path / "t", {"a": weight, "z": weight.clone()})
    assert pack(base, tuned, tmp_path / "t.ddct").counts == {"add": 1, "alias": 1}
    unpack(tmp_path / "t.ddct", base, tmp_path / "out")
    decoded = load(tmp_path / "out")
    assert torch.equal(decoded["a"], decoded["z"])


def test_single_files_work_as_models(tmp_path: Path) -> None:
    base_tensors = base_model()
    save_file(base_tensors, tmp_path / "base.safetensors")
    save_file(fine_tune(base_tensors), tmp_path / "tuned.safetensors")
    pack(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "t.ddct")
    assert unpack(tmp_path / "t.ddct", tmp_path / "base.safetensors", tmp_path / "out").applied == len(base_tensors)


def test_one_tensor_is_read_without_the_others(base: Path, archive: Path) -> None:
    with open_archive(archive) as opened, open_checkpoint(base) as base_model_:
        data = opened.decode("head.weight", base_model_)
        assert opened.reader.stored_size("head.weight") < opened.reader.file_size / 2
    assert data.size == 63 * 47 * 2


def test_a_transformers_model_loads_and_computes_after_the_round_trip(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    model.save_pretrained(tmp_path / "tuned", max_shard_size="30KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1

    pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "t.ddct")
    unpack(tmp_path / "t.ddct", tmp_path / "base", tmp_path / "out")
    names = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        difference = (loaded(tokens).logits - model.float()(tokens).logits).abs().max()
    assert float(difference) < 0.1


@pytest.mark.zoo
@pytest.mark.parametrize(("base_name", "tuned_name"), [("base-vit", "vit-mnist"), ("base-lm", "math")])
def test_real_models_decode_alike_everywhere(zoo: Path, tmp_path: Path, base_name: str, tuned_name: str) -> None:
    pack(zoo / base_name, zoo / tuned_name, tmp_path / "t.ddct")
    for device in ("auto", "cpu", "reference"):
        report = verify(tmp_path / "t.ddct", zoo / base_name, device=device)
        assert report.decoded == report.tensors
