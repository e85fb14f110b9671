"""``dctq.v1``: parameters and payload of a quantised, transformed delta (spec section 7.2).

This module knows how the payload is laid out. The arithmetic that turns it into a tensor is in ``backends/``,
``reference`` being the normative one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import InvalidError
from ..native import core
from .mapped import brought_in_by_keys
from .patches import PatchGrid
from .symbols import (
    check_packed,
    measure_runs,
    pack_sparse,
    pack_symbols,
    packed_size,
    unpack_sparse,
    unpack_symbols,
)
from .transform import PATCH_SIZES, TRANSFORMS

__all__ = [
    "MAX_CLASSES",
    "MAX_MULTIPLIER_SUM",
    "MAX_RANK",
    "NAME",
    "QUANTISERS",
    "DctqParams",
    "DctqPayload",
    "PayloadSplits",
    "StoredCodes",
    "StoredPayload",
    "build_sections",
    "parse_payload",
    "split_halves",
    "split_payload",
    "unpack_codes",
]

NAME = "dctq.v1"
QUANTISERS = ("affine", "levels")
MAX_CLASSES = 255
MAX_RANK = 256
MAX_MULTIPLIER_SUM = 2**17 - 1
"""Keeps the low-rank sums below 2^31: each term is a multiplier times two numbers of at most 128."""
_REQUIRED = {"cols", "patch", "transform", "quantiser", "classes"}
_OPTIONAL = {"sparse", "rank", "row_keys", "col_keys"}


@dataclass(frozen=True, slots=True)
class DctqParams:
    """The parameters of a layer, checked.

    Attributes:
        grid: the 2-D view and its patches.
        levels: for ``levels``, the reconstruction levels of each class; for ``affine``, 0, 1, …, A−1.
        sparse: the classes whose symbols are stored as runs of zeros and values.
        rank: terms of the low-rank part; 0 if there is none.
        row_keys, col_keys: whether rows (columns) are reordered by a key each.
    """

    grid: PatchGrid
    transform: str
    quantiser: str
    levels: tuple[tuple[int, ...], ...]
    sparse: tuple[int, ...] = ()
    rank: int = 0
    row_keys: bool = False
    col_keys: bool = False

    @classmethod
    def parse(cls, params: Mapping[str, object], elements: int) -> DctqParams:
        """Check the JSON parameters of a tensor of ``elements`` elements.

        Raises:
            InvalidError: they are not as section 7.2 demands.
        """
        if not _REQUIRED <= set(params) <= _REQUIRED | _OPTIONAL:
            raise InvalidError(f"dctq.v1 takes the parameters {sorted(_REQUIRED)}, and may have {sorted(_OPTIONAL)}")
        cols = _integer(params, "cols", 1, 2**48)
        if elements < 1 or elements % cols:
            raise InvalidError(f"dctq.v1: {elements} elements cannot be rows of {cols}")
        patch = _integer(params, "patch", 1, max(PATCH_SIZES))
        transform, quantiser = params["transform"], params["quantiser"]
        if patch not in PATCH_SIZES or transform not in TRANSFORMS or quantiser not in QUANTISERS:
            raise InvalidError("dctq.v1: unknown patch size, transform or quantiser")
        classes = params["classes"]
        if not isinstance(classes, list) or not 1 <= len(classes) <= MAX_CLASSES:
            raise InvalidError(f"dctq.v1: 'classes' must list 1 to {MAX_CLASSES} classes")
        parse_class = _affine_class if quantiser == "affine" else _levels_class
        levels = tuple(parse_class(item) for item in classes)
        return cls(
            grid=PatchGrid(elements // cols, cols, patch),
            transform=str(transform),
            quantiser=str(quantiser),
            levels=levels,
            sparse=_sparse_classes(params["sparse"], levels) if "sparse" in params else (),
            rank=_integer(params, "rank", 1, MAX_RANK) if "rank" in params else 0,
            row_keys=_flag(params, "row_keys"),
            col_keys=_flag(params, "col_keys"),
        )

    def as_json(self) -> dict[str, object]:
        """The inverse of :meth:`parse`."""
        affine = self.quantiser == "affine"
        params: dict[str, object] = {
            "cols": self.grid.cols,
            "patch": self.grid.patch,
            "transform": self.transform,
            "quantiser": self.quantiser,
            "classes": [len(levels) if affine else list(levels) for levels in self.levels],
        }
        if self.sparse:
            params["sparse"] = list(self.sparse)
        if self.rank:
            params["rank"] = self.rank
        if self.row_keys:
            params["row_keys"] = True
        if self.col_keys:
            params["col_keys"] = True
        return params

    def brought_in(self, payload: npt.NDArray[np.uint8], nbytes: int) -> Callable[[int], int]:
        """How many bytes of a mapped result of ``nbytes``, or of its base, have been touched once so many are finished.

        Rows with keys are decoded in another order than they lie in, and Linux maps up to a large page around each. The
        payload need not be checked yet.
        """
        if not self.row_keys:
            return int
        sections = self._fixed_sections()
        start = sum(size for _, size in sections[: [name for name, _ in sections].index("row_keys")])
        return brought_in_by_keys(payload[start : start + self.grid.rows], self.grid.rows, nbytes)

    @property
    def alphabets(self) -> tuple[int, ...]:
        """The number of symbols of each class."""
        return tuple(len(levels) for levels in self.levels)

    def size_bounds(self) -> tuple[int, int]:
        """The smallest and the largest payload that any class map can give, in bytes (section 7.2.2)."""
        symbols = self.grid.count * self.grid.patch**2
        fixed = sum(size for _, size in self._fixed_sections())
        affine = 4 * self.grid.count if self.quantiser == "affine" else 0
        codes = max(packed_size(symbols, alphabet) for alphabet in self.alphabets) + len(self.levels)
        return fixed, fixed + affine + (2 * symbols if self.sparse else codes)

    def _fixed_sections(self) -> list[tuple[str, int]]:
        """Names and byte sizes of the sections whose size does not depend on the class map, in order."""
        grid = self.grid
        scales = (1 if self.quantiser == "affine" else len(self.levels)) + (1 if self.rank else 0)
        return [
            ("scales", 4 * scales),
            ("multipliers", 2 * self.rank),
            ("row_keys", grid.rows if self.row_keys else 0),
            ("col_keys", grid.cols if self.col_keys else 0),
            ("left", grid.rows * self.rank),
            ("right", grid.cols * self.rank),
            ("class_map", grid.count if len(self.levels) > 1 else 0),
            ("run_counts", 4 * len(self.sparse)),
        ]


@dataclass(frozen=True, slots=True)
class DctqPayload:
    """The sections of a payload as arrays (R rows, C columns, N patches, M patches of a class with symbols).

    Attributes:
        scales: float32; ``levels``: one per class, ``affine``: the gain; then one for the low-rank part, if any.
        class_map: uint8 [N].
        codes: per class, uint8 [patches of the class, p, p], in patch order; none for a class without symbols.
        minima, steps: float16 [M], ``affine`` only.
        row_keys, col_keys: uint8 [R], [C].
        multipliers: uint16 [rank]; their sum is at most MAX_MULTIPLIER_SUM.
        left, right: int8 [R, rank], [C, rank].
    """

    scales: npt.NDArray[np.float32]
    class_map: npt.NDArray[np.uint8]
    codes: tuple[npt.NDArray[np.uint8], ...]
    minima: npt.NDArray[np.float16] = field(default_factory=lambda: np.empty(0, dtype="<f2"))
    steps: npt.NDArray[np.float16] = field(default_factory=lambda: np.empty(0, dtype="<f2"))
    row_keys: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype="u1"))
    col_keys: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype="u1"))
    multipliers: npt.NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, dtype="<u2"))
    left: npt.NDArray[np.int8] = field(default_factory=lambda: np.empty(0, dtype="i1"))
    right: npt.NDArray[np.int8] = field(default_factory=lambda: np.empty(0, dtype="i1"))


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """Where the symbols of a class lie in a payload, still packed, in bytes.

    Attributes:
        symbols: how many there are.
        runs: the run bytes of a sparse class: start and stop.
        packed: all symbols of a dense class, or those other than 0 of a sparse one: start and stop.
    """

    symbols: int
    packed: tuple[int, int]
    runs: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A checked payload whose symbols are still packed, for decoders that unpack them themselves.

    Attributes:
        payload: all of its bytes.
        sections: start and stop of ``scales``, ``multipliers``, ``row_keys``, ``col_keys``, ``left``, ``right``,
            ``class_map``, ``run_counts`` and ``ranges``, in bytes; ``ranges`` are the minima and steps.
        codes: one per class.
    """

    payload: npt.NDArray[np.uint8]
    sections: Mapping[str, tuple[int, int]]
    codes: tuple[StoredCodes, ...]

    def section(self, name: str) -> npt.NDArray[np.uint8]:
        start, stop = self.sections[name]
        return self.payload[start:stop]


def split_payload(params: DctqParams, payload: npt.NDArray[np.uint8]) -> StoredPayload:
    """Find and check the sections of a payload without unpacking its symbols.

    Raises:
        InvalidError: a class, number, symbol or size is not as section 7.2 demands.
    """
    stored, position = _fixed_part(params, payload)
    sections = dict(stored.sections)

    def take(size: int) -> tuple[int, int]:
        nonlocal position
        position += size
        if position > payload.size:
            raise _too_short(payload)
        return position - size, position

    grid, alphabets = params.grid, params.alphabets
    counts = _class_counts(params, stored.section("class_map"))
    coded = sum(count for count, alphabet in zip(counts, alphabets, strict=True) if alphabet > 1)
    sections["ranges"] = take(4 * coded if params.quantiser == "affine" else 0)
    minima, steps = _join_halves(payload[slice(*sections["ranges"])])
    if not (np.isfinite(minima).all() and np.isfinite(steps).all() and (steps >= 0).all()):
        raise InvalidError("dctq.v1: a minimum is not finite, or a step is negative or not finite")
    run_counts = dict(zip(params.sparse, stored.section("run_counts").view("<u4").tolist(), strict=True))
    codes = []
    for number, (patches, alphabet) in enumerate(zip(counts, alphabets, strict=True)):
        symbols = patches * grid.patch**2 if alphabet > 1 else 0
        runs, count, packed_alphabet = None, symbols, alphabet
        if number in run_counts:
            runs = take(run_counts[number])
            inside, count = measure_runs(payload[slice(*runs)], symbols)
            if not inside:
                raise InvalidError("dctq.v1: a run of zeros leads beyond the last symbol of its class")
            packed_alphabet = alphabet - 1
        packed = take(packed_size(count, packed_alphabet))
        check_packed(payload[slice(*packed)], count, packed_alphabet)
        codes.append(StoredCodes(symbols, packed, runs))
    if position != payload.size:
        raise InvalidError(f"dctq.v1: the payload has {payload.size} bytes, its contents take {position}")
    return StoredPayload(payload, sections, tuple(codes))


class PayloadSplits:
    """:func:`split_payload` for many payloads, whose symbols the native core finds and checks in its own threads.

    Attributes:
        buffers: what the native core is given: see ``split_payloads`` in ``native/interface.py``.

    Args:
        params: of each payload; None for one of another codec, about which nothing is found out.
        places: start and stop of each payload in the memory that will hold them all.
    """

    def __init__(self, params: Sequence[DctqParams | None], places: Sequence[tuple[int, int]]) -> None:
        self._params = params
        self._places = places
        self._first: list[int] = []
        rows, classes = array("Q"), array("Q")
        for own, (start, stop) in zip(params, places, strict=True):
            self._first.append(len(classes) // 2)
            if own is None:
                rows.extend((start, stop - start, *[0] * 6, self._first[-1], 0))
                continue
            sections, fixed = _follow(own._fixed_sections())
            rows.extend((start, stop - start, own.grid.count, own.grid.patch**2))
            rows.extend((sections["class_map"][0], sections["run_counts"][0], fixed))
            rows.extend((own.quantiser == "affine", self._first[-1], len(own.levels) if fixed <= stop - start else 0))
            for index, alphabet in enumerate(own.alphabets):
                classes.extend((alphabet, index in own.sparse))
        self._codes = np.zeros((len(classes) // 2, 5), dtype=np.uint64)
        self._good = bytearray(len(params))
        self.buffers = (rows, classes, self._codes, self._good)

    def results(self, memory: npt.NDArray[np.uint8]) -> Iterator[StoredPayload | InvalidError | None]:
        """What each payload gives, or what is wrong with it; those that the core has not found right are read here."""
        codes = self._codes.tolist()
        for own, place, good, first in zip(self._params, self._places, self._good, self._first, strict=True):
            payload = memory[slice(*place)]
            try:
                if own is None:
                    yield None
                elif good:
                    yield self._found(own, payload, codes[first : first + len(own.levels)])
                else:
                    yield split_payload(own, payload)
            except InvalidError as error:
                yield error

    def _found(self, params: DctqParams, payload: npt.NDArray[np.uint8], codes: list[list[int]]) -> StoredPayload:
        stored, fixed = _fixed_part(params, payload)
        coded = sum(symbols for symbols, *_ in codes) // params.grid.patch**2
        ranges = (fixed, fixed + (4 * coded if params.quantiser == "affine" else 0))
        found = (
            StoredCodes(symbols, (start, stop), (runs, runs_stop) if index in params.sparse else None)
            for index, (symbols, runs, runs_stop, start, stop) in enumerate(codes)
        )
        return StoredPayload(payload, {**stored.sections, "ranges": ranges}, tuple(found))


def _fixed_part(params: DctqParams, payload: npt.NDArray[np.uint8]) -> tuple[StoredPayload, int]:
    """The sections whose size does not depend on the class map, their numbers checked, and where they end."""
    sections, stop = _follow(params._fixed_sections())
    if stop > payload.size:
        raise _too_short(payload)
    stored = StoredPayload(payload, sections, ())
    scales = stored.section("scales").view("<f4")
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise InvalidError("dctq.v1: a scale is negative or not finite")
    if params.rank and int(stored.section("multipliers").view("<u2").sum(dtype=np.int64)) > MAX_MULTIPLIER_SUM:
        raise InvalidError(f"dctq.v1: the multipliers add up to more than {MAX_MULTIPLIER_SUM}")
    return stored, stop


def _follow(sections: Sequence[tuple[str, int]]) -> tuple[dict[str, tuple[int, int]], int]:
    """Start and stop of sections that follow each other, and where the last one ends."""
    position, places = 0, {}
    for name, size in sections:
        places[name] = position, position + size
        position += size
    return places, position


def _too_short(payload: npt.NDArray[np.uint8]) -> InvalidError:
    return InvalidError(f"dctq.v1: the payload has {payload.size} bytes, its contents take more")


def _class_counts(params: DctqParams, class_map: npt.NDArray[np.uint8]) -> list[int]:
    """Patches of each class, given the map or, with one class, nothing."""
    classes = len(params.levels)
    if classes == 1:
        return [params.grid.count]
    if core is not None:
        counts = np.frombuffer(core.count_bytes(class_map), dtype=np.uint64)
        if counts[classes:].any():
            raise InvalidError("dctq.v1: a patch names a class that does not exist")
        return [int(count) for count in counts[:classes]]
    if int(class_map.max()) >= classes:
        raise InvalidError("dctq.v1: a patch names a class that does not exist")
    if classes > 8:
        return [int(count) for count in np.bincount(class_map, minlength=classes)]
    # bincount widens to 64 bits first; a few passes of vectorised comparisons are far faster.
    return [int(np.count_nonzero(class_map == number)) for number in range(classes)]


def parse_payload(params: DctqParams, payload: npt.NDArray[np.uint8]) -> DctqPayload:
    """Payload bytes -> arrays.

    Raises:
        InvalidError: a class, number or size is not as section 7.2.2 demands.
    """
    return unpack_codes(params, split_payload(params, payload))


def unpack_codes(params: DctqParams, stored: StoredPayload) -> DctqPayload:
    """A checked payload with its symbols unpacked, one byte each."""
    payload = stored.payload
    grid, part = params.grid, stored.section
    minima, steps = _join_halves(part("ranges"))
    codes = []
    for place, alphabet in zip(stored.codes, params.alphabets, strict=True):
        packed = payload[slice(*place.packed)]
        if place.runs is None:
            symbols = unpack_symbols(packed, place.symbols, alphabet)
        else:
            symbols = unpack_sparse(payload[slice(*place.runs)], packed, place.symbols, alphabet)
        codes.append(symbols.reshape(-1, grid.patch, grid.patch))
    return DctqPayload(
        scales=part("scales").view("<f4"),
        class_map=part("class_map") if len(params.levels) > 1 else np.zeros(grid.count, dtype=np.uint8),
        codes=tuple(codes),
        minima=minima,
        steps=steps,
        row_keys=part("row_keys"),
        col_keys=part("col_keys"),
        multipliers=part("multipliers").view("<u2"),
        left=part("left").view(np.int8).reshape(params.rank, grid.rows).T,
        right=part("right").view(np.int8).reshape(params.rank, grid.cols).T,
    )


def build_sections(params: DctqParams, payload: DctqPayload) -> list[npt.NDArray[np.uint8]]:
    """Arrays -> the payload's sections in order, empty ones included; the inverse of :func:`parse_payload`."""
    coded: list[npt.NDArray[np.uint8]] = []
    run_counts = []
    for number, (codes, alphabet) in enumerate(zip(payload.codes, params.alphabets, strict=True)):
        if number in params.sparse:
            runs, values = pack_sparse(codes.reshape(-1), alphabet)
            run_counts.append(runs.size)
            coded.extend((runs, values))
        else:
            coded.append(pack_symbols(codes.reshape(-1), alphabet))
    sections: list[npt.NDArray[np.uint8]] = [
        payload.scales.astype("<f4").view(np.uint8),
        payload.multipliers.astype("<u2").view(np.uint8),
        payload.row_keys,
        payload.col_keys,
        np.ascontiguousarray(payload.left.T).view(np.uint8).reshape(-1),
        np.ascontiguousarray(payload.right.T).view(np.uint8).reshape(-1),
    ]
    if len(params.levels) > 1:
        sections.append(payload.class_map)
    sections.append(np.array(run_counts, dtype="<u4").view(np.uint8))
    if params.quantiser == "affine":
        sections.extend(split_halves(payload.minima, payload.steps))
    return sections + coded


def split_halves(minima: npt.NDArray[np.float16], steps: npt.NDArray[np.float16]) -> list[npt.NDArray[np.uint8]]:
    """Minima and steps as four byte planes: low and high bytes of the minima, low and high bytes of the steps."""
    return [
        np.ascontiguousarray(values.astype("<f2").view(np.uint8).reshape(-1, 2)[:, half])
        for values in (minima, steps)
        for half in (0, 1)
    ]


def _join_halves(planes: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    low_min, high_min, low_step, high_step = planes.reshape(4, -1)
    minima = np.stack([low_min, high_min], axis=1).view("<f2").reshape(-1)
    steps = np.stack([low_step, high_step], axis=1).view("<f2").reshape(-1)
    return minima, steps


def _integer(params: Mapping[str, object], name: str, low: int, high: int) -> int:
    value = params[name]
    if type(value) is not int or not low <= value <= high:
        raise InvalidError(f"dctq.v1: {name!r} must be an integer from {low} to {high}")
    return value


def _flag(params: Mapping[str, object], name: str) -> bool:
    if params.get(name, True) is not True:
        raise InvalidError(f"dctq.v1: {name!r} must be true where it is present")
    return name in params


def _sparse_classes(sparse: object, levels: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    if not isinstance(sparse, list) or not sparse or any(type(number) is not int for number in sparse):
        raise InvalidError("dctq.v1: 'sparse' must list class numbers where it is present")
    if sparse != sorted(set(sparse)) or not 0 <= sparse[0] <= sparse[-1] < len(levels):
        raise InvalidError("dctq.v1: 'sparse' must be ascending numbers of classes")
    if any(len(levels[number]) < 2 or levels[number][0] != 0 for number in sparse):
        raise InvalidError("dctq.v1: a sparse class needs two levels or more, the first of them 0")
    return tuple(sparse)


def _affine_class(alphabet: object) -> tuple[int, ...]:
    if type(alphabet) is not int or not 1 <= alphabet <= 127:
        raise InvalidError("dctq.v1: a class of the affine quantiser is its number of symbols, 1 to 127")
    return tuple(range(alphabet))


def _levels_class(levels: object) -> tuple[int, ...]:
    if not isinstance(levels, Sequence) or not 1 <= len(levels) <= 255:
        raise InvalidError("dctq.v1: a class is a list of 1 to 255 levels")
    if any(type(level) is not int or not -127 <= level <= 127 for level in levels):
        raise InvalidError("dctq.v1: a level must be an integer from -127 to 127")
    if len(levels) == 1 and levels[0] != 0:
        raise InvalidError("dctq.v1: the only level of a class without symbols must be 0")
    return tuple(levels)
