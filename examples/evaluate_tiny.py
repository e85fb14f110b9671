"""Measure a tiny example model: exact match on held-out sums, and loss on held-out plain text.

Usage: python examples/evaluate_tiny.py MODEL_DIR [--limit N] [--json]
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import torch
from tiny_data import HELD_OUT_PROBLEMS, held_out_problems, problem_text, text_documents
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

__all__ = ["exact_match", "text_loss"]

ANSWER_TOKENS = 5
TEXT_SEED = 2
TEXT_DOCUMENTS = 200
BATCH = 250


@torch.inference_mode()
def exact_match(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: list[tuple[int, int]]) -> float:
    """Share of `problems` whose greedy answer, up to the end token, is exactly the decimal sum."""
    correct = 0
    for start in range(0, len(problems), BATCH):
        batch = problems[start : start + BATCH]
        prompts = tokenizer([problem_text(*pair) for pair in batch], padding=True, return_tensors="pt")
        tokens = model.generate(  # type: ignore[operator]
            **prompts, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        answers = tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        correct += sum(answer == str(sum(pair)) for answer, pair in zip(answers, batch, strict=True))
    return correct / len(problems)


@torch.inference_mode()
def text_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Mean negative log likelihood, in nats per token, of `TEXT_DOCUMENTS` held-out documents."""
    total, tokens = 0.0, 0
    for document in islice(text_documents(TEXT_SEED), TEXT_DOCUMENTS):
        ids = tokenizer(document + tokenizer.eos_token, truncation=True, return_tensors="pt")["input_ids"]
        logits = model(ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    return total / tokens


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Measure a tiny example model.")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--limit", type=int, default=HELD_OUT_PROBLEMS, help="number of sums (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    arguments = parser.parse_args()
    if not 1 <= arguments.limit <= HELD_OUT_PROBLEMS:
        parser.error(f"--limit must be between 1 and {HELD_OUT_PROBLEMS}")
    if not arguments.model_dir.is_dir():
        parser.error(f"not a directory: {arguments.model_dir}")

    logging.disable_progress_bar()
    torch.set_num_threads(1)  # so small a model gains nothing from a second thread
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(arguments.model_dir).float().eval()
    problems = held_out_problems(arguments.limit)
    accuracy, loss = exact_match(model, tokenizer, problems), text_loss(model, tokenizer)
    if arguments.json:
        print(json.dumps({"problems": len(problems), "exact_match": accuracy, "text_loss": round(loss, 4)}))
    else:
        print(f"sums, exact match: {accuracy:.3f} of {len(problems)}")
        print(f"plain text, loss:  {loss:.3f} nats per token")


if __name__ == "__main__":
    main()
