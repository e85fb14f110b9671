"""``ddct inspect``."""

from __future__ import annotations

from collections import Counter

import click

from ..container.dtypes import element_count
from .output import format_bytes, json_option, print_json, print_table

__all__ = ["command"]


@click.command(name="inspect")
@click.argument("archive", type=click.Path())
@click.option("--tensors", "list_tensors", is_flag=True, help="One line per tensor.")
@json_option
def command(archive: str, list_tensors: bool, as_json: bool) -> None:
    """Show what ARCHIVE holds; reads its metadata only."""
    from ..pipeline.archive import open_archive

    with open_archive(archive) as opened:
        metadata = opened.metadata
        records = opened.tensors
        parameters = sum(element_count(record.shape) for record in records.values())
        summary: dict[str, object] = {
            "archive": opened.place,
            "content_id": opened.content_id,
            "generator": metadata.generator,
            "preset": metadata.quality.preset if metadata.quality else None,
            "file_size": opened.reader.file_size,
            "model_size": sum(record.nbytes for record in records.values()),
            "parameters": parameters,
            "bits_per_weight": 8 * opened.reader.file_size / parameters if parameters else 0.0,
            "error": metadata.quality.error if metadata.quality else None,
            "lossless": metadata.lossless,
            "base_id": metadata.base_id,
            "base_hint": dict(metadata.base_hint),
            "target_id": metadata.target_ids[-1],
            "exact_id": metadata.exact_id,
            "counts": dict(sorted(Counter(record.op for record in records.values()).items())),
            "shards": [shard.path for shard in metadata.shards],
            "files": [file.path for file in metadata.files],
        }
        lines: list[dict[str, object]] = [
            {
                "name": record.name,
                "dtype": record.dtype,
                "shape": list(record.shape),
                "op": record.op,
                "codecs": [layer.codec for layer in record.layers],
                "stored": opened.reader.stored_size(record.name),
                "error": record.error,
            }
            for record in (records.values() if list_tensors else ())
        ]
    if as_json:
        print_json({**summary, "tensors": lines} if list_tensors else summary)
        return
    shown = {name.replace("_", " "): value for name, value in summary.items() if value not in (None, {}, [])}
    for name in ("file size", "model size"):
        shown[name] = format_bytes(int(str(shown[name])))
    shown["bits per weight"] = f"{summary['bits_per_weight']:.3f}"
    print_table(shown)
    if list_tensors:
        for line in lines:
            error = "" if line["error"] is None else f"  error {line['error']:.4f}"
            click.echo(f"{line['op']:<8}{line['stored']:>12}  {line['dtype']} {line['shape']}  {line['name']}{error}")
