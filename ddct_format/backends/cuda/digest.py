"""The digest ``sha256-64k`` (spec section 1.1) of tensors on the device: a thread per leaf, all in one launch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import isqrt

import numpy as np
import torch
import triton
import triton.language as tl

from ...container.digest import LEAF_SIZE
from .launch import launch

__all__ = ["leaf_digests", "tensor_digests"]

_BLOCK = 32


def _root_bits(number: int, root: int) -> int:
    """The first 32 bits of the fraction of a square or cube root: where SHA-256's constants come from."""
    if root == 2:
        return isqrt(number << 64) & 0xFFFFFFFF
    low, high = 0, 1 << 36
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= number << 96 else (low, middle - 1)
    return low & 0xFFFFFFFF


_PRIMES = [n for n in range(2, 312) if all(n % d for d in range(2, n))]
_CONSTANTS = [_root_bits(prime, 3) for prime in _PRIMES] + [_root_bits(prime, 2) for prime in _PRIMES[:8]]
"""The 64 round constants, then the initial state."""


def tensor_digests(tensors: Sequence[torch.Tensor]) -> list[str]:
    """Digests of tensors that lie on one device each; hexadecimal, in order."""
    contiguous = [tensor.contiguous() for tensor in tensors]
    leaves: dict[torch.device, list[int]] = {}
    for tensor in contiguous:
        whole = tensor.nbytes // LEAF_SIZE if tensor.data_ptr() % 4 == 0 else 0
        leaves.setdefault(tensor.device, []).extend(tensor.data_ptr() + k * LEAF_SIZE for k in range(whole))
    hashed = {
        device: iter(leaf_digests(torch.tensor(places, dtype=torch.int64, device=device), LEAF_SIZE))
        for device, places in leaves.items()
    }
    digests = []
    for tensor in contiguous:
        outer = hashlib.sha256(tensor.nbytes.to_bytes(8, "little"))
        whole = tensor.nbytes // LEAF_SIZE if tensor.data_ptr() % 4 == 0 else 0
        for _ in range(whole):
            outer.update(next(hashed[tensor.device]))
        data = tensor.view(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
        rest = data[whole * LEAF_SIZE :].cpu().numpy()
        for start in range(0, rest.size, LEAF_SIZE):
            outer.update(hashlib.sha256(rest[start : start + LEAF_SIZE].tobytes()).digest())
        digests.append(outer.hexdigest())
    return digests


def leaf_digests(places: torch.Tensor, leaf_size: int) -> list[bytes]:
    """sha256 of every leaf.

    Args:
        places: int64 [leaves], addresses, multiples of 4.
        leaf_size: bytes, a multiple of 64.
    """
    if not places.numel():
        return []
    constants = torch.from_numpy(np.array(_CONSTANTS, dtype=np.uint32).view(np.int32)).to(places.device)
    result = torch.empty((places.numel(), 8), dtype=torch.int32, device=places.device)
    launch(
        _hash_leaves, (triton.cdiv(places.numel(), _BLOCK),), places, constants, result, places.numel(),
        leaf_size // 64, BLOCK=_BLOCK, num_warps=1,
    )  # fmt: skip
    rows = result.cpu().numpy().view(np.uint32).astype(">u4")
    return [row.tobytes() for row in rows]


@triton.jit
def _hash_leaves(places_ptr, constants_ptr, result_ptr, leaves, blocks, BLOCK: tl.constexpr):
    leaf = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = leaf < leaves
    words_ptr = tl.load(places_ptr + leaf, mask=inside, other=0).to(tl.pointer_type(tl.uint32))
    state = ()
    for index in tl.static_range(8):
        state = state + (  # type: ignore[assignment]
            tl.zeros([BLOCK], tl.uint32) + tl.load(constants_ptr + 64 + index).to(tl.uint32, bitcast=True),
        )
    block = 0
    while block <= blocks:
        more = inside & (block < blocks)
        words = ()
        for index in tl.static_range(16):
            word = _reverse_bytes(tl.load(words_ptr + index, mask=more, other=0))
            if index == 0:
                word = tl.where(block < blocks, word, 0x80000000)  # after the last block, the padding
            if index == 15:
                word = tl.where(block < blocks, word, blocks * 512)
            words = words + (word.to(tl.uint32),)  # type: ignore[assignment]
        state = _compress(state, words, constants_ptr)
        words_ptr += 16
        block += 1
    for index in tl.static_range(8):
        tl.store(result_ptr + leaf * 8 + index, state[index].to(tl.int32, bitcast=True), mask=inside)


@triton.jit
def _compress(state, words, constants_ptr):
    """One block into the state, sixteen rounds at a time: all 64 unrolled would take a minute to compile."""
    a, b, c, d, e, f, g, h = state
    turn = 0
    while turn < 4:
        for index in tl.static_range(16):
            constant = tl.load(constants_ptr + turn * 16 + index).to(tl.uint32, bitcast=True)
            first = h + (_rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25)) + (g ^ (e & (f ^ g))) + constant + words[0]
            second = (_rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))
            a, b, c, d, e, f, g, h = first + second, a, b, c, d + first, e, f, g
            early, late = words[1], words[14]
            word = words[0] + words[9]
            word += _rotate(early, 7) ^ _rotate(early, 18) ^ (early >> 3)
            word += _rotate(late, 17) ^ _rotate(late, 19) ^ (late >> 10)
            words = words[1:] + (word,)
        turn += 1
    return (state[0] + a, state[1] + b, state[2] + c, state[3] + d,
            state[4] + e, state[5] + f, state[6] + g, state[7] + h)  # fmt: skip


@triton.jit
def _rotate(word, count: tl.constexpr):
    return (word >> count) | (word << (32 - count))


@triton.jit
def _reverse_bytes(word):
    return (word >> 24) | ((word >> 8) & 0xFF00) | ((word << 8) & 0xFF0000) | (word << 24)
