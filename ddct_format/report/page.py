"""A report as one HTML page that needs nothing else: no network, no other file, no script to be read.

Names come from strangers. Everything that is not made here passes :func:`_text`, and the page's own policy lets a
browser run the one script that is meant to be there, and load nothing.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import PurePath

from .archive_report import ArchiveReport, Distribution, TensorReport
from .charts import histogram, part_class, stacked_bar
from .importance import encode_png
from .page_assets import SCRIPT, STYLE
from .stored_bytes import PARTS

__all__ = ["page_pieces"]

_NARROWEST = 0.15
"""Longer or wider matrices are drawn as if they were not."""


def page_pieces(report: ArchiveReport) -> Iterator[str]:
    """The page, piece by piece: a model may have many tensors."""
    script_hash = b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    title = _text(PurePath(report.archive).name)
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title} · ddct report</title><style>{STYLE}</style></head>\n<body><main>\n"
    )
    yield from _head(report)
    yield from _bytes(report)
    yield from _distribution(report)
    yield from _maps(report.tensors)
    yield from _tensors(report)
    yield f"</main><script>{SCRIPT}</script></body></html>\n"


def _head(report: ArchiveReport) -> Iterator[str]:
    yield f"<h1><bdi>{_text(PurePath(report.archive).name)}</bdi></h1>\n"
    yield f'<p class="soft">A change to the base <bdi>{_text(report.base)}</bdi></p>\n'
    if report.against_is_packed is False:
        yield (
            '<p class="warn">The model that this page compares with is not the fine-tune that was packed: '
            f"<bdi>{_text(report.against)}</bdi> has other weights.</p>\n"
        )
    measured = report.measured_error is not None
    tiles = [
        (_size(report.file_size), f"of {_size(report.model_size)} of weights"),
        (_number(report.bits_per_weight), "bits per weight, everything counted"),
        (_number(report.measured_error if measured else report.stored_error), "relative squared error of the change"),
    ]
    if report.cosine is not None:
        tiles.append((_number(report.cosine), "cosine to the true change"))
    tiles.append((f"{len(report.tensors):,}", f"tensors, {report.parameters:,} weights"))
    tiles.append(("yes" if report.lossless else "no", "restores the fine-tune bit for bit"))
    yield '<div class="tiles">'
    yield from (f'<div class="tile"><b>{_text(value)}</b><span>{_text(what)}</span></div>' for value, what in tiles)
    yield "</div>\n"
    compared = None
    if report.against is not None:
        compared = f"{report.against} ({'the packed fine-tune' if report.against_is_packed else 'another model'})"
    facts: list[tuple[str, object, bool]] = [
        ("preset", report.preset, False),
        ("written by", report.generator, False),
        ("content id", report.content_id, True),
        ("base id", report.base_id, True),
        ("decodes to", report.target_id, True),
        ("packed from", report.exact_id, True),
        ("compared with", compared, False),
        ("bits per weight without side files", _number(report.tensor_bits_per_weight), False),
        ("error stored in the archive", _number(report.stored_error), False),
        *((f"base's {key}, as claimed", value, False) for key, value in report.base_hint.items()),
    ]
    yield "<section><h2>Archive</h2><dl>"
    for name, value, is_code in facts:
        if value not in (None, ""):
            shown = f"<code>{_text(value)}</code>" if is_code else f"<bdi>{_text(value)}</bdi>"
            yield f"<dt>{_text(name)}</dt><dd>{shown}</dd>"
    yield "</dl></section>\n"


def _bytes(report: ArchiveReport) -> Iterator[str]:
    yield f"<section><h2>Where the bytes went</h2>{stacked_bar(report.parts)}"
    yield '<div class="scroll"><table><thead><tr><th class="word">part</th><th>bytes</th><th>share</th>'
    yield "<th>bits per weight</th></tr></thead><tbody>"
    for part, label in PARTS.items():
        size = report.parts.get(part, 0.0)
        if size:
            per_weight = 8 * size / report.parameters if report.parameters else None
            yield (
                f'<tr><td class="word"><span class="swatch {part_class(part)}"></span>{_text(label)}</td>'
                f"<td>{size:,.0f}</td><td>{100 * size / report.file_size:.1f} %</td><td>{_number(per_weight)}</td></tr>"
            )
    yield (
        "</tbody></table></div><p class='soft'>Parts of a layer share compressed blocks; a layer's bytes are shared "
        "out by what each part compresses to by itself.</p></section>\n"
    )


def _distribution(report: ArchiveReport) -> Iterator[str]:
    rows = [("decoded", report.decoded), ("original", report.original)]
    shown = [(name, found) for name, found in rows if found is not None and found.count]
    if not shown:
        return
    yield "<section><h2>How weights change</h2>"
    drawing = histogram(report.decoded, report.original, width=810, height=200)
    if drawing:
        ends = [_number(sign * shown[0][1].reach) for sign in (-1, 1)]
        yield f'{drawing}<div class="axis"><span>{ends[0]}</span><span>0</span><span>{ends[1]}</span></div>'
        line = "; line: the fine-tune itself" if report.original is not None else ""
        yield f"<p class='soft'>Area: decoded{line}. Square-root scale, four deviations to either side.</p>"
    yield (
        '<div class="scroll"><table><thead><tr><th class="word"></th><th>weights</th><th>mean</th><th>variance</th>'
        "<th>skewness</th><th>excess kurtosis</th></tr></thead><tbody>"
    )
    for name, found in shown:
        cells = (found.mean, found.variance, found.skewness, found.kurtosis)
        numbers = "".join(f"<td>{_number(cell)}</td>" for cell in cells)
        yield f'<tr><td class="word">{name}</td><td>{found.count:,}</td>{numbers}</tr>'
    yield "</tbody></table></div></section>\n"


def _maps(tensors: Sequence[TensorReport]) -> Iterator[str]:
    mapped = [tensor for tensor in tensors if tensor.importance is not None]
    if not mapped:
        return
    yield (
        "<section><h2>Which patches matter</h2><p class='soft'>Bits per coefficient, from dark (none) to bright "
        "(most of the tensor), rows and columns in the order of the matrix. Below: how its weights change.</p>"
        '<div class="maps">'
    )
    for tensor in mapped:
        found = tensor.importance
        assert found is not None
        largest = float(found.values.max())
        image = b64encode(encode_png(found.values, largest)).decode()
        ratio = min(max(found.cols / found.rows, _NARROWEST), 1 / _NARROWEST)
        drawing = histogram(tensor.decoded, tensor.original, width=243, height=40)
        yield (
            f'<figure><img alt="Importance of patches" style="width:min(100%,{10 * ratio:.3f}rem);'
            f'aspect-ratio:{ratio:.4f}" src="data:image/png;base64,{image}">{drawing}'
            f"<figcaption><b><bdi>{_text(tensor.name)}</bdi></b><br>{found.rows:,} × {found.cols:,}, patches of "
            f"{found.patch}, {_number(float(found.values.min()))} to {_number(largest)} bits</figcaption></figure>\n"
        )
    yield "</div></section>\n"


def _tensors(report: ArchiveReport) -> Iterator[str]:
    models = [name for name, found in (("original", report.original), ("decoded", report.decoded)) if found is not None]
    compared = report.against is not None
    words = ("tensor", "op", "codec", "shape")
    numbers = ["bits per weight", "stored bytes", "error", *(["cosine"] if compared else [])]
    for what in ("variance", "skewness", "kurtosis"):
        numbers += [f"{what}, {model}" if compared else what for model in models]
    yield '<section><h2>Tensors</h2><div class="scroll tall"><table class="sort"><thead><tr>'
    yield "".join(f'<th class="word" scope="col">{word}</th>' for word in words)
    yield "".join(f'<th scope="col">{number}</th>' for number in numbers)
    yield "</tr></thead><tbody>\n"
    for tensor in report.tensors:
        yield f"<tr>{''.join(_tensor_cells(tensor, models, compared))}</tr>\n"
    yield "</tbody></table></div>"
    skipped = sum(tensor.not_finite for tensor in report.tensors)
    if skipped:
        yield f"<p class='soft'>{skipped:,} weights are not finite in one of the models: no statistics count them.</p>"
    yield "</section>\n"


def _tensor_cells(tensor: TensorReport, models: Sequence[str], compared: bool) -> Iterator[str]:
    shape = " × ".join(f"{dimension:,}" for dimension in tensor.shape) or "scalar"
    yield f'<td class="name"><bdi>{_text(tensor.name)}</bdi></td><td class="word">{_text(tensor.op)}</td>'
    yield f'<td class="word">{_text(" + ".join(tensor.codecs))}</td>'
    yield f'<td class="word">{_text(tensor.dtype)} {shape}</td>'
    yield _cell(tensor.bits_per_weight)
    yield f'<td data-value="{tensor.stored}">{tensor.stored:,}</td>'
    yield _cell(tensor.measured_error if compared else tensor.stored_error)
    if compared:
        yield _cell(tensor.cosine)
    found: dict[str, Distribution | None] = {"original": tensor.original, "decoded": tensor.decoded}
    for what in ("variance", "skewness", "kurtosis"):
        for model in models:
            yield _cell(getattr(found[model], what, None))


def _cell(value: float | None) -> str:
    return "<td></td>" if value is None else f'<td data-value="{value!r}">{_number(value)}</td>'


def _text(value: object) -> str:
    return escape(str(value), quote=True)


def _number(value: float | None) -> str:
    """Four significant digits."""
    if value is None:
        return ""
    return f"{value:.4g}".replace("-", "−") if value else "0"


def _size(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"
