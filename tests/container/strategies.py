"""Random metadata that follow every rule of spec section 5."""

from __future__ import annotations

from hypothesis import strategies as st

from ddct_format.container.dtypes import DTYPE_BITS
from ddct_format.container.records import (
    FileRecord,
    Layer,
    Metadata,
    Quality,
    ShardRecord,
    TensorRecord,
    target_ids,
)

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
dtypes = st.sampled_from(sorted(DTYPE_BITS))
errors = st.none() | st.floats(0, 1e30)
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
params = st.dictionaries(
    plain_text, st.integers(0, 2**53 - 1) | plain_text | st.lists(st.integers(0, 9), max_size=3), max_size=3
)
component = st.text("abc-_ 0", min_size=1, max_size=8).map(lambda text: text + "x")


@st.composite
def layers(draw: st.DrawFn) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            draw(st.sampled_from(["raw.v1", "dctq.v1", "next.v9"])),
            draw(params),
            draw(st.sampled_from([0, 1, 4095, 4096, 4097]) | st.integers(0, 20_000)),
            draw(digests),
            draw(st.booleans()),
        )
        for _ in range(draw(st.integers(1, 4)))
    )


@st.composite
def tensors(draw: st.DrawFn, shards: int) -> tuple[TensorRecord, ...]:
    records: list[TensorRecord] = []
    for name in sorted(draw(st.sets(names, max_size=6))):
        dtype, shape = draw(dtypes), tuple(draw(st.lists(st.integers(0, 300), max_size=4)))
        shard, error = draw(st.integers(0, shards - 1)), draw(errors)
        sources = [record for record in records if record.of is None]
        op = draw(st.sampled_from(["add", "replace", "keep", *["alias"][: len(sources)]]))
        if op == "alias":
            source = draw(st.sampled_from(sources))
            record = TensorRecord(name, source.dtype, source.shape, shard, op, of=source.name, error=error)
        elif op == "keep":
            record = TensorRecord(name, dtype, shape, shard, op, base=draw(digests), error=error)
        elif op == "replace":
            record = TensorRecord(name, dtype, shape, shard, op, layers=draw(layers()), error=error)
        else:
            base_dtype = draw(st.none() | st.sampled_from(sorted(DTYPE_BITS.keys() - {dtype})))
            record = TensorRecord(
                name, dtype, shape, shard, op, draw(digests), base_dtype, layers=draw(layers()), error=error
            )
        records.append(record)
    return tuple(records)


@st.composite
def metadata(draw: st.DrawFn) -> Metadata:
    shard_paths = sorted(draw(st.sets(component, min_size=1, max_size=3)))
    file_paths = sorted(draw(st.sets(st.tuples(component, component).map("/".join), max_size=3)))
    records = draw(tensors(len(shard_paths)))
    ids = target_ids(records)
    shards = tuple(
        ShardRecord(f"{path}.safetensors", draw(st.dictionaries(plain_text, plain_text, max_size=2)))
        for path in shard_paths
    )
    return Metadata(
        generator=draw(plain_text),
        chunk_size=draw(st.sampled_from([4096, 8192, 65536])),
        base_id=draw(digests),
        base_hint=draw(st.dictionaries(st.sampled_from(["repo", "revision", "name"]), plain_text)),
        target_ids=ids,
        exact_id=draw(st.just(ids[-1]) | digests),
        shards=shards,
        files=tuple(FileRecord(path, draw(st.integers(0, 9000)), draw(digests)) for path in file_paths),
        tensors=records,
        quality=draw(st.none() | st.builds(Quality, plain_text, st.floats(0, 1e9))),
    )
