"""How payloads are read in groups: nothing of this needs a GPU."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pipeline.models import write_model

import ddct_format

device_decoder = pytest.importorskip("ddct_format.integrations.device_decoder", reason="no Triton")


def test_layers_of_a_tensor_are_in_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group has a stream of its own, and the second layer needs what the first one leaves."""
    base = {f"w{n}": torch.randn(64, 64).bfloat16() for n in range(5)}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", {name: tensor + 0.01 for name, tensor in base.items()})
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "model.ddct", exact=True)
    with ddct_format.open_archive(tmp_path / "model.ddct") as archive:
        wanted = [(record, torch.device("cpu")) for record in archive.metadata.tensors]
        layers = [layer.size for record, _ in wanted for layer in record.layers]
        assert len(layers) == 2 * len(wanted)
        for limit in (1, layers[0], 3 * max(layers), sum(layers) * 2):
            monkeypatch.setattr(device_decoder, "_GROUP", limit)
            groups = list(device_decoder._grouped(wanted, by_device=False))
            found = [[(item.record.name, item.index) for item in group] for group in groups]
            assert [item for group in found for item in group] == [(r.name, n) for r, _ in wanted for n in range(2)]
            assert all(group[0][1] == 0 and group[-1][1] == 1 for group in found)
            for group in groups:
                places = [item.place for item in group]
                assert all(stop <= start for (_, stop), (start, _) in pairwise(places))
