"""How far decoded models are from the fine-tune in what they say: less noisy than a task's metric on some examples.

Usage: python benchmarks/divergence.py [ZOO] [--pair NAME ...] [--row NAME ...] [--examples N]

ZOO and the rows are those of ``quality.py``. Prints the Kullback-Leibler divergence of the decoded model's answers from
the fine-tune's, in nats, the share of reference answers (digits; tokens of worked solutions) that each gets right, and
the bits per weight. Everything is computed in float32.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from quality import PAIRS, PEERS, PRESETS, rows

Answers = list[tuple[torch.Tensor, torch.Tensor]]
"""Logarithms of probabilities [examples, answers], and the right answers [examples]."""

_BATCH = 100
_BEGIN, _END = 1, 2


@torch.no_grad()
def image_answers(model: Path, zoo: Path, task: str, examples: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    data = np.load(zoo / "eval" / f"{task}.npz")
    images, labels = (torch.from_numpy(data[key][:examples]) for key in ("x", "y"))
    if images.dim() == 3:  # grey, 28 x 28
        images = torch.nn.functional.pad(images, (2, 2, 2, 2))[..., None].expand(-1, -1, -1, 3)
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    network = transformers.ViTForImageClassification.from_pretrained(model, dtype=torch.float32).eval()
    for start in range(0, len(pixels), _BATCH):
        logits = network(pixel_values=pixels[start : start + _BATCH]).logits
        yield logits.log_softmax(-1), labels[start : start + _BATCH].long()


@torch.no_grad()
def solution_answers(model: Path, zoo: Path, task: str, examples: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each token of the worked solutions, given the tokens before it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with (zoo / "eval" / f"{task}.jsonl").open(encoding="utf-8") as file:
        problems = [json.loads(line) for line, _ in zip(file, range(examples), strict=False)]
    for problem in problems:
        prompt = [_BEGIN, *tokenizer.encode(problem["prompt"]).ids]
        solution = [*tokenizer.encode(problem["solution"]).ids, _END]
        logits = network(input_ids=torch.tensor([prompt + solution[:-1]])).logits[0, len(prompt) - 1 :]
        yield logits.log_softmax(-1), torch.tensor(solution)


def compare(fine_tune: Answers, decoded: Answers) -> tuple[float, float]:
    """Mean divergence, and the share of right answers of the second."""
    divergence = right = count = 0.0
    for (expected, labels), (found, _) in zip(fine_tune, decoded, strict=True):
        divergence += float((expected.exp() * (expected - found)).sum())
        right += int((found.argmax(-1) == labels).sum())
        count += len(labels)
    return divergence / count, right / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("zoo", nargs="?", type=Path, default=os.environ.get("DDCT_ZOO"))
    parser.add_argument("--pair", action="append", choices=list(PAIRS), help="all by default; may be repeated")
    parser.add_argument("--row", action="append", choices=[*PRESETS, *PEERS], help="all by default; may be repeated")
    parser.add_argument("--examples", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.zoo is None or not Path(arguments.zoo).is_dir():
        print("skipped: no collection of real models; give its folder or set DDCT_ZOO")
        return
    transformers.utils.logging.disable_progress_bar()
    zoo = Path(arguments.zoo)
    for tuned in arguments.pair or PAIRS:
        base, task = PAIRS[tuned]
        answers = solution_answers if task == "math" else image_answers
        print(f"\n{tuned} on {base}, task {task}\n\n| scheme | bits per weight | divergence | right answers |")
        print("|---|---|---|---|", flush=True)
        expected = list(answers(zoo / tuned, zoo, task, arguments.examples))
        print(f"| fine-tune | 16 | 0 | {compare(expected, expected)[1]:.4f} |", flush=True)
        for row in rows(zoo, base, tuned, arguments.row or [*PRESETS, *PEERS]):
            divergence, right = compare(expected, list(answers(row.directory, zoo, task, arguments.examples)))
            print(f"| {row.name} | {row.bits:.3f} | {divergence:.4f} | {right:.4f} |", flush=True)


if __name__ == "__main__":
    main()
