"""``ddct pack``."""

from __future__ import annotations

from pathlib import Path

import click

from ..encode.presets import PRESETS
from .options import device_option
from .output import format_bytes, json_option, print_json, print_table, show_progress

__all__ = ["command"]

_PRESET_HELP = "; ".join(f"{preset.name}: {preset.summary}" for preset in PRESETS.values())


@click.command(name="pack")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("finetuned", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(list(PRESETS)), default="paper", show_default=True, help=_PRESET_HELP)
@device_option
@click.option("--threads", type=click.IntRange(1, 256), help="Worker threads; the cores, at most 8, by default.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Decode the file before it gets its name.")
@click.option("--base-repo", help="Where readers may find the base: a repository name. Never an identity.")
@click.option("--base-revision", help="Revision of --base-repo.")
@json_option
def command(
    base: Path,
    finetuned: Path,
    out: Path,
    preset: str,
    device: str,
    threads: int | None,
    verify: bool,
    base_repo: str | None,
    base_revision: str | None,
    as_json: bool,
) -> None:
    """Write the fine-tune FINETUNED of the model BASE as the archive OUT.

    BASE and FINETUNED are model directories with safetensors weights, or single .safetensors files.
    """
    from ..pipeline.pack import pack

    hint = {key: value for key, value in (("repo", base_repo), ("revision", base_revision)) if value}
    report = pack(
        base,
        finetuned,
        out,
        preset=preset,
        device=device,
        threads=threads,
        verify=verify,
        base_hint=hint,
        progress=show_progress(as_json),
    )
    if as_json:
        print_json(report.as_dict())
        return
    rows = {
        "archive": report.archive,
        "size": f"{format_bytes(report.file_size)} ({report.original_size / report.file_size:.1f}x smaller)",
        "bits per weight": f"{report.bits_per_weight:.3f}, all-in",
        "relative error": "none stored as a change" if report.error is None else f"{report.error:.4f}",
        "tensors": ", ".join(f"{count} {op}" for op, count in report.counts.items()) or "none",
        "verified": "decoded and compared" if report.verified else "no",
        "content id": report.content_id,
        "time": f"{report.seconds:.1f} s",
    }
    print_table(rows)
    for name, reason in report.skipped.items():
        click.echo(f"ddct: not carried: {name}: {reason}", err=True)
