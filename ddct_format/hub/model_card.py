"""The README.md of a repository on the Hugging Face Hub: what the archives in it are, for people and for its index.

Only what stands between two marks is ddct's; the rest belongs to whoever writes there.
"""

from __future__ import annotations

import re

from ddct_format.hub.notes import Notes
from ddct_format.hub.pointer import Pointer

__all__ = ["forget_checkpoint", "has_checkpoint", "update_card"]

_BEGIN, _END = "<!-- ddct: checkpoints -->", "<!-- ddct: end -->"
_TABLE_HEAD = (
    "| checkpoint | size | of | bits per weight | error | preset | base | sha256 |\n"
    "|---|---:|---:|---:|---:|---|---|---|\n"
)
_ROW = re.compile(r"\| `(?P<name>[A-Za-z0-9][A-Za-z0-9._/-]{0,511})` \|[^\n]{0,400}\|")
_FRONT_MATTER = re.compile(r"---\n(?P<keys>.*?)^---\n", re.DOTALL | re.MULTILINE)


def update_card(card: str, repository: str, name: str, pointer: Pointer, notes: Notes | None) -> str:
    """``card`` (empty if there is none yet) with one more checkpoint, or with new numbers for it.

    Args:
        repository: ``owner/name``.
        notes: of the archive; its row has no more than size and digest without them.
    """
    rows = _rows(card)
    rows[name] = _row(name, pointer, notes)
    card = _with_keys(card or _new_card(repository), notes.base_repo if notes else None)
    return _with_table(card, rows)


def forget_checkpoint(card: str, name: str) -> str:
    """``card`` without the row of a checkpoint."""
    rows = _rows(card)
    return _with_table(card, rows) if rows.pop(name, None) is not None else card


def has_checkpoint(card: str, name: str) -> bool:
    """Whether ``card`` has a row for a checkpoint."""
    return name in _rows(card)


def _new_card(repository: str) -> str:
    return f"""
# {repository.split("/")[1]}

Fine-tuned checkpoints, each stored as the change to its base model: one small `.ddct` file that decodes to the same
bits everywhere, and only with the base that it was made for.

```sh
pip install ddct
ddct pull hf://{repository} CHECKPOINT --base BASE_DIRECTORY OUT_DIRECTORY
```

`error` is the squared error of the decoded weights relative to the squared change from the base. Where `base` is
another checkpoint of this table, `ddct pull` fetches that first by itself. `ddct pull --lossy` fetches the least that
gives a model.

"""


def _with_keys(card: str, base_repo: str | None) -> str:
    wanted = {"library_name": "ddct"}
    if base_repo is not None:
        wanted |= {"base_model": base_repo, "base_model_relation": "finetune"}
    match = _FRONT_MATTER.match(card)
    keys = match["keys"] if match else ""
    present = {line.split(":")[0] for line in keys.splitlines() if ":" in line}
    keys += "".join(f"{key}: {value}\n" for key, value in wanted.items() if key not in present)
    return f"---\n{keys}---\n{card[match.end() :] if match else card}"


def _rows(card: str) -> dict[str, str]:
    begin, end = card.find(_BEGIN), card.find(_END)
    section = card[begin:end] if 0 <= begin < end else ""
    return {match["name"]: match[0] for line in section.splitlines() if (match := _ROW.fullmatch(line))}


def _with_table(card: str, rows: dict[str, str]) -> str:
    lines = "".join(f"{rows[name]}\n" for name in sorted(rows, key=_natural))
    table = f"{_BEGIN}\n\n{_TABLE_HEAD}{lines}\n{_END}"
    begin, end = card.find(_BEGIN), card.find(_END)
    if 0 <= begin < end:
        return card[:begin] + table + card[end + len(_END) :]
    return f"{card}{table}\n"


def _row(name: str, pointer: Pointer, notes: Notes | None) -> str:
    cells = [f"`{name}`", f"{pointer.size / 1e6:.2f} MB"]
    if notes is None:
        cells += [""] * 5
    else:
        error = "" if notes.error is None else f"{notes.error:.4f}"
        base = notes.base_name or notes.base_repo or ""
        cells += [f"{notes.original_size / 1e6:.2f} MB", f"{notes.bits_per_weight:.3f}", error, notes.preset, base]
    return f"| {' | '.join([*cells, f'`{pointer.sha256[:16]}`'])} |"


def _natural(name: str) -> list[tuple[int, str]]:
    """checkpoint-9 before checkpoint-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
