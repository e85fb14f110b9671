"""The exact layer's symbols are the same however a tensor is divided among threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddct_format.backends.native_encoder import NativeEncoder
from ddct_format.backends.numpy_encoder import NumpyEncoder
from ddct_format.encode import ulp_pair
from ddct_format.encode.exact import encode_exact
from ddct_format.encode.pair import TensorData
from ddct_format.encode.workspace import Workspace
from ddct_format.pipeline.parallel import Crew
from ddct_format.pipeline.workspace import BudgetWorkspace


@pytest.mark.parametrize("kind", [NativeEncoder, NumpyEncoder])
@pytest.mark.parametrize("scale", [0.3, 300.0])
def test_parts_of_a_tensor_join_to_what_the_whole_gives(
    kind: type[NumpyEncoder], scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    before = random.normal(size=(300, 70)).astype("<f4").view("<u4") >> 16
    moves = np.rint(random.standard_cauchy(before.shape) * scale * np.exp(random.normal(size=70))).clip(-3000, 3000)
    target = (before + moves.astype(np.int64)).astype("<u2")
    tensors = [
        TensorData("BF16", (300, 70), np.frombuffer(patterns.astype("<u2"), dtype=np.uint8))
        for patterns in (before, target)
    ]

    def written(workspace: Workspace) -> tuple[object, list[bytes]]:
        encoder = kind()
        encoder.band_weights = 1000
        params, sections = encode_exact(tensors[0], tensors[1], 70, encoder, workspace)
        return params, [section.tobytes() for section in sections]

    whole = written(Workspace())
    assert whole[1][-1], "there are extra bits"
    monkeypatch.setattr(ulp_pair, "_PART_WEIGHTS", 1)
    assert written(Workspace()) == whole
    with Crew(3) as crew:
        assert written(BudgetWorkspace(4096, 4096, crew, tmp_path, urgent=True)) == whole
