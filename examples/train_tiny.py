"""Make the tiny example models: a base trained on plain text, and a full fine-tune of it on sums.

Usage: python examples/train_tiny.py OUTPUT_DIR

Writes OUTPUT_DIR/base and OUTPUT_DIR/sums, Hugging Face directories in bfloat16; OUTPUT_DIR must not exist.
CPU only, one thread, about ten minutes.
Seeds are fixed: equal machines with equal library versions give equal files; others give equivalent ones.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_data import problem_text, text_documents, training_problems
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

__all__ = ["build_tokenizer", "finetune", "new_model", "train_base"]

SEED = 20
THREADS = 1
PAD, START, END = "<pad>", "<s>", "</s>"
SPECIAL_TOKENS = [PAD, START, END]
VOCABULARY = 448
CONTEXT = 128

TOKENIZER_DOCUMENTS = 5000
BASE_DOCUMENTS = 60_000
BASE_STEPS, BASE_BATCH, BASE_RATE = 800, 32, 3e-3
TUNE_STEPS, TUNE_BATCH, TUNE_RATE = 1100, 128, 1.8e-4
WARMUP = 100
IGNORED = -100  # label of tokens that carry no loss


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of `VOCABULARY` entries in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(text_documents(SEED), TOKENIZER_DOCUMENTS), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def new_model() -> LlamaForCausalLM:
    """A freshly initialised model in float32."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(START),
        eos_token_id=SPECIAL_TOKENS.index(END),
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    rate: float,
    weight_decay: float,
) -> None:
    """AdamW over all parameters, warm-up then cosine decay; `batches` yields int64 (ids, labels)."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    started = time.monotonic()
    for step, (ids, labels) in enumerate(islice(batches, steps), start=1):
        logits = model(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"  step {step}: loss {loss.item():.4f}, {time.monotonic() - started:.0f} s", flush=True)


def text_batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Windows of `CONTEXT` tokens at random places of the joined documents."""
    documents = [document + END for document in islice(text_documents(SEED), BASE_DOCUMENTS)]
    stream = torch.tensor([token for ids in tokenizer(documents, verbose=False)["input_ids"] for token in ids])
    print(f"  {len(stream)} tokens of text", flush=True)
    while True:
        starts = torch.randint(len(stream) - CONTEXT, (BASE_BATCH, 1))
        ids = stream[starts + torch.arange(CONTEXT)]
        yield ids, ids


def sum_batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random training sums, one per row; only the answer and the end token carry loss."""
    problems, rng = training_problems(), random.Random(SEED)
    while True:
        batch = rng.sample(problems, TUNE_BATCH)
        prompts = [problem_text(left, right) for left, right in batch]
        answers = [f"{left + right}{END}" for left, right in batch]
        encoded = tokenizer([p + a for p, a in zip(prompts, answers, strict=True)], padding=True)
        ids = torch.tensor(encoded["input_ids"])
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, IGNORED)
        for row, prompt in enumerate(tokenizer(prompts)["input_ids"]):
            labels[row, : len(prompt)] = IGNORED
        yield ids, labels


def train_base(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The base: a new model trained on plain text."""
    model = new_model()
    train(model, text_batches(tokenizer), BASE_STEPS, BASE_RATE, weight_decay=0.1)
    return model


def finetune(base_dir: Path, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The full fine-tune: every parameter of the saved base, trained on sums in float32."""
    model = LlamaForCausalLM.from_pretrained(base_dir)
    train(model.float(), sum_batches(tokenizer), TUNE_STEPS, TUNE_RATE, weight_decay=0.01)
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a Hugging Face directory with bfloat16 weights."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    # transformers 5 renames the tokenizer class and the dtype key; the older names load in 4 and in 5.
    rename_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    rename_json(directory / "config.json", {"torch_dtype": "bfloat16"})


def rename_json(path: Path, values: dict[str, str]) -> None:
    """Set some keys of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2) + "\n")


def describe_change(base_dir: Path, tuned_dir: Path) -> str:
    """Parameters, norm of the change relative to the base, and share of bfloat16 weights that differ."""
    base, tuned = (load_file(directory / "model.safetensors") for directory in (base_dir, tuned_dir))
    before, after = (torch.cat([tensors[name].flatten() for name in base]) for tensors in (base, tuned))
    relative = ((after.double() - before.double()).norm() / before.double().norm()).item()
    changed = (after != before).double().mean().item()
    return f"{len(before)} parameters, relative norm of the change {relative:.4f}, changed {changed:.4f}"


def main() -> None:
    """Parse the command line, train both models, save both directories."""
    parser = argparse.ArgumentParser(description="Make the tiny example models.")
    parser.add_argument("output_dir", type=Path)
    output_dir: Path = parser.parse_args().output_dir
    unfinished = output_dir.with_name(output_dir.name + ".partial")
    for path in (output_dir, unfinished):
        if path.exists():
            parser.error(f"already exists: {path}")
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    tokenizer = build_tokenizer()
    print("base:", flush=True)
    save(train_base(tokenizer), tokenizer, unfinished / "base")
    print("sums:", flush=True)
    save(finetune(unfinished / "base", tokenizer), tokenizer, unfinished / "sums")
    print(describe_change(unfinished / "base", unfinished / "sums"))
    unfinished.rename(output_dir)


if __name__ == "__main__":
    main()
