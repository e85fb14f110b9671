"""Which sections of a payload share a block of a frame."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
from codec.layers import layers
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.paths import computing_by

from ddct_format import native
from ddct_format.codec.dctq import DctqParams, DctqPayload, build_sections, parse_payload
from ddct_format.container.payload import store_payload
from ddct_format.container.zstd_frame import decompress
from ddct_format.encode.blocks import share_blocks, terms_of

CHUNK = 65536
Bytes = npt.NDArray[np.uint8]


def sample(size: int, spread: float, seed: int) -> Bytes:
    """Bytes of which 0 is the most frequent, falling off geometrically."""
    random = np.random.default_rng(seed)
    return np.minimum(random.geometric(1 / (1 + spread), size) - 1, 255).astype(np.uint8)


@st.composite
def skewed_sections(draw: st.DrawFn) -> list[Bytes]:
    count = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.integers(0, 6000), min_size=count, max_size=count))
    spreads = draw(st.lists(st.sampled_from([0.0, 0.05, 0.3, 1.0, 3.0, 10.0, 60.0]), min_size=count, max_size=count))
    return [sample(size, spread, i) for i, (size, spread) in enumerate(zip(sizes, spreads, strict=True))]


def stored_size(sections: list[Bytes]) -> int:
    return store_payload(sections, CHUNK).stored_size


@settings(deadline=None)
@given(layers(), st.sampled_from([256, 4096, CHUNK]))
def test_any_layer_comes_back_from_shared_blocks(layer: tuple[DctqParams, DctqPayload], chunk_size: int) -> None:
    params, payload = layer
    stored = store_payload(share_blocks(build_sections(params, payload)), chunk_size)
    starts = range(0, stored.raw_size, chunk_size)
    raw = b"".join(
        decompress(chunk, min(chunk_size, stored.raw_size - start))
        for chunk, start in zip(stored.chunks, starts, strict=True)
    )
    parsed = parse_payload(params, np.frombuffer(raw, dtype=np.uint8))
    for field in fields(DctqPayload):
        ours, theirs = getattr(payload, field.name), getattr(parsed, field.name)
        if field.name == "codes":
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        else:
            assert np.array_equal(ours, theirs), field.name


@settings(deadline=None)
@given(skewed_sections())
def test_sharing_keeps_the_bytes_and_costs_hardly_any(sections: list[Bytes]) -> None:
    shared = share_blocks(sections)
    assert len(shared) <= len(sections)
    assert b"".join(section.tobytes() for section in shared) == b"".join(section.tobytes() for section in sections)
    before = stored_size(sections)
    assert (
        stored_size(shared) <= before + 100 + before // 20
    )  # zstd may use a neighbour's table again, unlike estimated


def test_sharing_pays_on_the_whole() -> None:
    random = np.random.default_rng(0)
    before = after = 0
    for seed in range(60):
        spreads = random.choice([0.05, 0.3, 1.0, 3.0, 10.0, 60.0], 8)
        sizes = random.choice([40, 200, 1000, 5000], 8)
        sections = [sample(int(size), spread, seed) for size, spread in zip(sizes, spreads, strict=True)]
        before += stored_size(sections)
        after += stored_size(share_blocks(sections))
    assert after < 0.995 * before


@pytest.mark.skipif(native.core is None, reason="the package was built without a C compiler")
@settings(deadline=None)
@given(skewed_sections())
def test_the_core_and_numpy_share_alike(sections: list[Bytes]) -> None:
    with computing_by("numpy"):
        expected = [section.size for section in share_blocks(sections)]
    assert [section.size for section in share_blocks(sections)] == expected


@pytest.mark.skipif(native.core is None, reason="the package was built without a C compiler")
@pytest.mark.parametrize("ends", [[], [1, 1, 4], [3, 2, 4], [1, 3], [5]])
def test_the_core_refuses_ends_that_are_none(ends: list[int]) -> None:
    assert native.core is not None
    tables = np.zeros(4096, dtype=np.int64), np.zeros(257, dtype=np.int64)
    with pytest.raises(ValueError, match="sections must end"):
        native.core.share_blocks(bytes(4), np.array(ends, dtype=np.uint64), *tables)


def test_sections_that_are_alike_share_and_different_ones_do_not() -> None:
    sections = [*(sample(400, 3.0, seed) for seed in range(6)), sample(30_000, 60.0, 6)]
    shared = share_blocks(sections)
    assert [section.size for section in shared] == [2400, 30_000]
    assert stored_size(shared) < stored_size(sections) - 30


def test_large_sections_are_neither_shared_nor_copied() -> None:
    large = np.zeros(CHUNK + 1, dtype=np.uint8)
    shared = share_blocks([sample(10, 1.0, 0), large, sample(10, 1.0, 1)])
    assert [section.size for section in shared] == [10, CHUNK + 1, 10]
    assert shared[1] is large


def test_each_term_of_a_low_rank_part_is_a_section() -> None:
    factors = np.array([[1, -2], [3, 4], [5, 6]], dtype=np.int8)
    assert [term.tolist() for term in terms_of(factors)] == [[1, 3, 5], [254, 4, 6]]
