"""Directories that transformers writes are read, copied byte for byte, and load again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from ddct_format.checkpoint import Checkpoint, OutputDirectory, open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


def tiny_llama(tied: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "vocab_size": 96,
    }
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, **heads, tie_word_embeddings=tied, dtype="bfloat16")
    model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16)


def copy(checkpoint: Checkpoint, target: Path) -> None:
    with OutputDirectory(target) as output:
        for index, shard in enumerate(checkpoint.shards):
            listed = [(t.name, t.dtype, t.shape) for t in checkpoint.tensors.values() if t.shard == index]
            with output.shard_writer(shard.path, listed, shard.metadata) as writer:
                for name, _, _ in listed:
                    writer.write(name, checkpoint.read(name))
        for file in checkpoint.side_files():
            output.write_file(file.path, checkpoint.read_side_file(file.path))
        output.commit()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_size", ["20KB", "1GB"])
def test_a_saved_model_survives_a_copy(tmp_path: Path, tied: bool, max_shard_size: str) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = tiny_llama(tied)
    model.save_pretrained(tmp_path / "saved", max_shard_size=max_shard_size)
    with open_checkpoint(tmp_path / "saved") as checkpoint:
        assert (len(checkpoint.shards) > 1) == (max_shard_size == "20KB")
        assert ("lm_head.weight" in checkpoint.tensors) == (not tied)
        for name in checkpoint.tensors:
            expected = model.state_dict()[name].contiguous().view(torch.uint8).numpy().tobytes()
            assert bytes(checkpoint.read(name)) == expected
        copy(checkpoint, tmp_path / "copy")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == saved
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.bfloat16)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
