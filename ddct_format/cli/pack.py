"""``ddct pack``."""

from __future__ import annotations

from pathlib import Path

import click

from ..encode.presets import DEFAULT_PRESET, KEEP_PRESETS, PRESETS
from ..errors import ConfigError
from .options import device_option
from .output import format_bytes, json_option, print_json, print_table, show_progress

__all__ = ["command"]

_PRESET_HELP = "; ".join(f"{preset.name}: {preset.summary}" for preset in PRESETS.values())


@click.command(name="pack")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("finetuned", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), default=DEFAULT_PRESET, show_default=True, help=_PRESET_HELP
)
@click.option("--exact", is_flag=True, help="Add a layer that restores the fine-tune bit for bit, after the lossy one.")
@click.option("--bits", type=float, help="Target in bits per weight instead of the preset's, side files not counted.")
@click.option("--error", type=float, help="Target as relative squared error over the model, instead of the preset's.")
@click.option(
    "--keep",
    type=(str, click.Choice(list(KEEP_PRESETS))),
    multiple=True,
    metavar="PATTERN PRESET",
    help="A preset of their own for tensors by name ('lm_head*' high); raw carries their bytes. May be repeated.",
)
@click.option("--max-error", type=float, help="Write nothing if any tensor's relative squared error is above this.")
@click.option(
    "--eval",
    "eval_command",
    metavar="CMD",
    help="Run CMD on the decoded model's directory (in place of {}, or added at the end); its metric is the last "
    'number it prints, or "value" of a JSON object in its last line.',
)
@click.option("--min-metric", type=float, help="Write nothing if the metric of --eval is below this.")
@click.option("--max-metric", type=float, help="Write nothing if the metric of --eval is above this.")
@device_option
@click.option("--threads", type=click.IntRange(1, 256), help="Worker threads; the cores, at most 8, by default.")
@click.option(
    "--training-state",
    is_flag=True,
    help="Carry optimizer state, DCP shards and other pickles, too, as bytes that ddct never looks into.",
)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Decode the file before it gets its name.")
@click.option("--base-repo", help="Where readers may find the base: a repository name. Never an identity.")
@click.option("--base-revision", help="Revision of --base-repo.")
@json_option
def command(
    base: Path,
    finetuned: Path,
    out: Path,
    preset: str,
    exact: bool,
    bits: float | None,
    error: float | None,
    keep: tuple[tuple[str, str], ...],
    max_error: float | None,
    eval_command: str | None,
    min_metric: float | None,
    max_metric: float | None,
    device: str,
    threads: int | None,
    training_state: bool,
    verify: bool,
    base_repo: str | None,
    base_revision: str | None,
    as_json: bool,
) -> None:
    """Write the fine-tune FINETUNED of the model BASE as the archive OUT.

    BASE and FINETUNED are model directories with safetensors weights, or single .safetensors files.
    """
    from ..pipeline.guard import Evaluation
    from ..pipeline.pack import pack

    if eval_command is None and not (min_metric is None and max_metric is None):
        raise ConfigError("--min-metric and --max-metric are bounds for what --eval measures")
    evaluation = None if eval_command is None else Evaluation(eval_command, min_metric, max_metric)
    hint = {key: value for key, value in (("repo", base_repo), ("revision", base_revision)) if value}
    report = pack(
        base,
        finetuned,
        out,
        preset=preset,
        exact=exact,
        bits=bits,
        error=error,
        keep=keep,
        max_error=max_error,
        evaluation=evaluation,
        device=device,
        threads=threads,
        training_state=training_state,
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
        "bits per weight": f"{report.bits_per_weight:.3f}; {report.tensor_bits_per_weight:.3f} without side files",
        "relative error": "none stored as a change" if report.error is None else f"{report.error:.4f}",
        "tensors": ", ".join(f"{count} {op}" for op, count in report.counts.items()) or "none",
        "verified": "decoded and compared" if report.verified else "no",
        "content id": report.content_id,
        **({} if report.metric is None else {"metric": f"{report.metric:g}"}),
        "time": f"{report.seconds:.1f} s",
    }
    print_table(rows)
    for name, reason in report.skipped.items():
        click.echo(f"ddct: not carried: {name}: {reason}", err=True)
