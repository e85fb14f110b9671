"""The knobs of an ablation: every one changes what is written, and every result is an ordinary archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddct_format import open_archive, open_checkpoint, pack
from ddct_format.backends import get_backend
from ddct_format.codec.dctq import parse_payload
from ddct_format.encode.pair import Pair, TensorData
from ddct_format.encode.paper import encode_paper
from ddct_format.encode.presets import PRESETS, Preset
from ddct_format.encode.quantiser import GAINS, Quantiser, choose_gain
from ddct_format.encode.workspace import Workspace

BACKEND = get_backend("reference")
DELTA = np.random.default_rng(0).standard_normal((96, 80), dtype=np.float32) * np.float32(3e-4)


def decode_paper(quantiser: Quantiser, shares: tuple[tuple[int, float], ...] = ((2, 0.5),)) -> np.ndarray:
    data = DELTA.view(np.uint8).reshape(-1)
    tensors = (TensorData("F32", DELTA.shape, bytes_) for bytes_ in (np.zeros_like(data), data))
    pair, workspace = Pair(*tensors, DELTA.shape), Workspace()
    quantised = encode_paper(pair, shares, quantiser, BACKEND, workspace)
    assert quantised is not None
    encoded, energy = quantised
    assert energy == pytest.approx(float(np.square(DELTA, dtype=np.float64).sum()))
    payload = parse_payload(encoded.params, np.concatenate(encoded.sections))
    return BACKEND.decode_delta(encoded.params, payload).astype(np.float64)


def test_each_gain_does_what_its_name_says() -> None:
    true = DELTA.astype(np.float64)
    decoded = {gain: decode_paper(Quantiser(gain=gain)) for gain in GAINS}
    assert (true * decoded["unbiased"]).sum() == pytest.approx(np.square(true).sum(), rel=1e-4)
    assert np.abs(decoded["mean-absolute"]).sum() == pytest.approx(np.abs(true).sum(), rel=1e-4)
    errors = {gain: np.square(true - found).sum() for gain, found in decoded.items()}
    assert min(errors, key=errors.__getitem__) == "least-squares"
    assert errors["none"] < errors["mean-absolute"] < errors["unbiased"]
    shape = decoded["none"] / np.abs(decoded["none"]).sum()
    for found in decoded.values():
        assert np.allclose(found / np.abs(found).sum(), shape, rtol=1e-4, atol=1e-9)


def test_without_a_gain_finely_quantised_coefficients_give_the_delta_back() -> None:
    for transform in ("dct", "hadamard", "none"):
        found = decode_paper(Quantiser(transform=transform, gain="none"), ((6, 1.0),))
        assert np.square(found - DELTA).sum() < 0.02 * np.square(DELTA).sum(), transform


def test_a_gain_of_nothing_is_zero() -> None:
    for kind in GAINS[:-1]:
        gain = choose_gain(kind, energy=1.0, aligned=0.0, decoded=0.0, absolute=1.0, decoded_absolute=0.0)
        assert gain == 0


@pytest.mark.parametrize("transform", ["dct", "hadamard", "none"])
@pytest.mark.parametrize("patch", [8, 16, 32])
@pytest.mark.parametrize("scheme", ["bits", "paper"])
def test_transform_and_patch_size_are_what_is_written(
    small_models: Path, tmp_path: Path, scheme: str, patch: int, transform: str
) -> None:
    quantiser = Quantiser(transform=transform, patch=patch)
    preset = (
        Preset("mine", "", bits=3.0, quantiser=quantiser)
        if scheme == "bits"
        else Preset("mine", "", shares=((2, 0.5),), quantiser=quantiser)
    )
    report = pack(small_models / "base", small_models / "tuned", tmp_path / "t.ddct", preset=preset)
    assert report.verified and report.preset == "mine"
    with open_archive(tmp_path / "t.ddct") as archive, open_checkpoint(small_models / "base") as base:
        params = archive.tensors["a"].layers[0].params
        assert (params["patch"], params["transform"]) == (patch, transform)
        assert archive.decode("a", base).tobytes() != bytes(base.read("a"))


def test_the_low_rank_part_and_the_gain_can_be_turned_off(small_models: Path, tmp_path: Path) -> None:
    ranks, scales = [], []
    for number, quantiser in enumerate((Quantiser(), Quantiser(low_rank=False), Quantiser(gain="least-squares"))):
        preset = Preset("mine", "", bits=2.0, quantiser=quantiser)
        pack(small_models / "base", small_models / "tuned", tmp_path / f"{number}.ddct", preset=preset)
        with open_archive(tmp_path / f"{number}.ddct") as archive:
            ranks.append(archive.tensors["a"].layers[0].params.get("rank", 0))
            scales.append(archive.reader.payload("a", 0)[:4])
    assert ranks[0] and ranks[2] and not ranks[1]
    assert scales[0] != scales[2]


def test_presets_use_the_defaults_and_the_papers_own() -> None:
    for name, preset in PRESETS.items():
        assert preset.quantiser.patch == 16 and preset.quantiser.transform == "dct"
        assert preset.quantiser.gain == ("mean-absolute" if name.startswith("paper") else "unbiased")
