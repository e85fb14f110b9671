"""A base and a fine-tune as large as asked for, made by tiling a small real pair over the shapes of Llama 3.2 1B.

    python benchmarks/pairs.py ZOO/base-lm ZOO/math OUT --size 1.5

Every matrix is covered with copies of a small model's matrix of the same role. All copies in a row of tiles share one
permutation and one choice of signs of their rows, all copies in a column of tiles one of their columns, and base and
fine-tune share both: so the distribution of weights and deltas, their scale by row and column and the share that few
singular vectors hold stay as they were. Rows repeat after some hundred others, but for signs, and a compressor finds
that if its window holds as many. Writes OUT/base and OUT/tuned, bf16, in shards of at most 1 GB, one tensor in memory
at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddct_format import Checkpoint, open_checkpoint
from ddct_format.checkpoint import SafetensorsWriter

__all__ = ["llama_shapes", "main", "make_pair"]

HIDDEN, INNER, KEYS, VOCABULARY = 2048, 8192, 512, 128256
_SHARD_BYTES = 1_000_000_000
Shapes = dict[str, tuple[int, ...]]
Patterns = npt.NDArray[np.uint16]


def main() -> None:
    """Write one pair and say how large it became."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", type=Path, help="a small Llama-style model directory in bf16")
    parser.add_argument("tuned", type=Path, help="its fine-tune")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=float, default=1.5, metavar="GB", help="of each of the two models, about")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    size = make_pair(arguments.base, arguments.tuned, arguments.out, arguments.size, arguments.seed)
    print(f"{arguments.out}: base and tuned, {size} bytes of tensors each")


def llama_shapes(gigabytes: float) -> Shapes:
    """Tensors of a model with the 1B's layers, as many as fit, and as much of its vocabulary as a third of the size."""
    budget = gigabytes * 1e9
    vocabulary = min(VOCABULARY, int(0.35 * budget / (2 * HIDDEN)))
    layer: Shapes = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, INNER),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
    }
    layers = max(1, round((budget / 2 - vocabulary * HIDDEN) / sum(int(np.prod(shape)) for shape in layer.values())))
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for number in range(layers):
        shapes.update((f"model.layers.{number}.{role}.weight", shape) for role, shape in layer.items())
    return dict(sorted(shapes.items()))


def make_pair(base: Path, tuned: Path, out: Path, gigabytes: float, seed: int = 0) -> int:
    """Write the pair below ``out``, which must not exist; the bytes of one model's tensors."""
    shapes = llama_shapes(gigabytes)
    with open_checkpoint(base) as small_base, open_checkpoint(tuned) as small_tuned:
        for folder, small in (("base", small_base), ("tuned", small_tuned)):
            directory = out / folder
            directory.mkdir(parents=True)
            for path, names in _shards(shapes):
                listed = [(name, "BF16", shapes[name]) for name in names]
                with SafetensorsWriter(directory / path, listed, {"format": "pt"}) as writer:
                    for name in names:
                        # The same seed for both models: what stays together is the pair.
                        random = np.random.default_rng([seed, *name.encode()])
                        writer.write(name, _tiled(_source(small, name), shapes[name], random))
            config = {"architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "torch_dtype": "bfloat16"}
            (directory / "config.json").write_text(json.dumps(config))
    return sum(2 * int(np.prod(shape)) for shape in shapes.values())


def _shards(shapes: Shapes) -> Iterator[tuple[str, list[str]]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if filled and filled + nbytes > _SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += nbytes
    for number, names in enumerate(groups, start=1):
        yield f"model-{number:05}-of-{len(groups):05}.safetensors", names


def _source(small: Checkpoint, name: str) -> Patterns:
    """The small model's tensor of the same role, layers taken in turn."""
    parts = name.split(".")
    if parts[1] == "layers":
        layers = {int(other.split(".")[2]) for other in small.tensors if other.startswith("model.layers.")}
        name = ".".join([*parts[:2], str(int(parts[2]) % len(layers)), *parts[3:]])
    info = small.tensors[name]
    if info.dtype != "BF16":
        raise SystemExit(f"{small.path}: {name} is {info.dtype}, not BF16")
    return np.frombuffer(small.read(name), dtype="<u2").reshape(info.shape)


def _tiled(source: Patterns, shape: tuple[int, ...], random: np.random.Generator) -> Patterns:
    if source.ndim == 1:
        order, _ = _shuffle(source.shape[0], shape[0], random, signs=False)
        return source[order]
    rows, row_signs = _shuffle(source.shape[0], shape[0], random)
    cols, col_signs = _shuffle(source.shape[1], shape[1], random)
    result = np.empty(shape, dtype=np.uint16)
    step = 1024
    for start in range(0, shape[0], step):
        part = slice(start, start + step)
        np.take(source[rows[part]], cols, axis=1, out=result[part])
        result[part] ^= row_signs[part, None] ^ col_signs[None, :]
    return result


def _shuffle(
    length: int, wanted: int, random: np.random.Generator, *, signs: bool = True
) -> tuple[npt.NDArray[np.intp], Patterns]:
    """Indices of as many permutations as cover ``wanted``, and a sign bit for each."""
    order = np.concatenate([random.permutation(length) for _ in range(-(-wanted // length))])[:wanted]
    sign = random.integers(0, 2, wanted).astype(np.uint16) << 15 if signs else np.zeros(wanted, dtype=np.uint16)
    return order, sign.astype(np.uint16)


if __name__ == "__main__":
    main()
