"""``ddct pack``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..encode.presets import DEFAULT_PRESET, KEEP_PRESETS, PRESETS
from ..errors import ConfigError
from .options import device_option, resource_options
from .output import format_bytes, json_option, print_json, print_table, show_progress

if TYPE_CHECKING:
    from ..pipeline.pack import PackReport

__all__ = ["command"]

_PRESET_HELP = "; ".join(f"{preset.name}: {preset.summary}" for preset in PRESETS.values())


@click.command(name="pack")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("finetuned", type=click.Path(path_type=Path), nargs=-1)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path),
    help="A directory, in place of OUT, for one archive per fine-tune, named after it.",
)
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
@resource_options
@click.option(
    "--training-state",
    is_flag=True,
    help="Carry optimizer state, DCP shards and other pickles, too, as bytes that ddct never looks into.",
)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Decode the file before it gets its name.")
@click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Remember digests of the base in $DDCT_CACHE, by default ~/.cache/ddct; safe to delete.",
)
@click.option("--base-repo", help="Where readers may find the base: a repository name. Never an identity.")
@click.option("--base-revision", help="Revision of --base-repo.")
@json_option
def command(
    base: Path,
    finetuned: tuple[Path, ...],
    out: Path,
    out_dir: Path | None,
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
    memory: int,
    drop_cache: bool,
    training_state: bool,
    verify: bool,
    cache: bool,
    base_repo: str | None,
    base_revision: str | None,
    as_json: bool,
) -> int:
    """Write the fine-tune FINETUNED of the model BASE as the archive OUT.

    BASE and FINETUNED are model directories with safetensors weights, or single .safetensors files. With several
    fine-tunes, OUT is a directory for one archive each: BASE is digested once, and a fine-tune that is refused does not
    keep the others from being packed.
    """
    from ..pipeline.guard import Evaluation
    from ..pipeline.many import pack_many
    from ..pipeline.pack import pack

    if out_dir is not None:
        finetuned = (*finetuned, out)
    if not finetuned:
        raise click.UsageError("Missing argument 'OUT'.")
    if eval_command is None and not (min_metric is None and max_metric is None):
        raise ConfigError("--min-metric and --max-metric are bounds for what --eval measures")
    settings: dict[str, Any] = {
        "preset": preset,
        "exact": exact,
        "bits": bits,
        "error": error,
        "keep": keep,
        "max_error": max_error,
        "evaluation": None if eval_command is None else Evaluation(eval_command, min_metric, max_metric),
        "device": device,
        "threads": threads,
        "memory": memory,
        "drop_cache": drop_cache,
        "training_state": training_state,
        "verify": verify,
        "cache": cache,
        "base_hint": {key: value for key, value in (("repo", base_repo), ("revision", base_revision)) if value},
        "progress": show_progress(as_json),
    }
    if out_dir is None and len(finetuned) == 1:
        report = pack(base, finetuned[0], out, **settings)
        if as_json:
            print_json(report.as_dict())
        else:
            _print_report(report)
        return 0
    directory = out if out_dir is None else out_dir
    if any(directory.glob("*.safetensors")):
        raise click.UsageError(f"{directory} is a model; archives of several fine-tunes need a directory of their own")
    outcomes = pack_many(base, finetuned, directory, **settings)
    failures = [outcome.error for outcome in outcomes if outcome.error is not None]
    if as_json:
        count = len(outcomes)
        archives = [outcome.as_dict() for outcome in outcomes]
        print_json({"archives": archives, "packed": count - len(failures), "failed": len(failures)})
    else:
        for outcome in outcomes:
            if outcome.report is not None:
                _print_report(outcome.report)
                click.echo()
        click.echo(f"{len(outcomes) - len(failures)} of {len(outcomes)} fine-tunes packed")
        for failure in failures:
            click.echo(f"ddct: error: {failure}", err=True)
    return failures[0].exit_status if failures else 0


def _print_report(report: PackReport) -> None:
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
