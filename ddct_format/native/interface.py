"""What the extension module offers: ``src/`` beside this file, compiled. Bytes are any C-contiguous buffer.

Sizes are checked, and a wrong one is a ValueError: a mistake of the caller, never of a file. What a file may get
wrong is told by the result. Work of any length lets other threads run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..container.buffers import Buffer

__all__ = ["Core"]


class Blocks(Protocol):
    """Functions of ``src/blocks.c``."""

    def share_blocks(self, data: Buffer, ends: Buffer, logarithms: Buffer, overheads: Buffer, /) -> list[int]:
        """Merge neighbouring sections; the number of the first of each group (``encode/blocks.py``).

        Args:
            ends: uint64, where in ``data`` each section ends; none is empty.
            logarithms, overheads: int64 [4096] and [257], in 2^-16 bits.
        """


class InstructionSets(Protocol):
    """Functions of ``src/instruction_set.c``."""

    def instruction_sets(self) -> list[str]:
        """What this machine has kernels for, the best last: ``portable``, ``avx2``, ``avx512``, ``vbmi2``, ``amx``."""

    def use_instruction_set(self, name: str, /) -> str:
        """Use the kernels for that instruction set from now on; for tests, and only while nothing else computes.

        Returns:
            The one in use before.

        Raises:
            ValueError: this machine does not have it.
        """


class Symbols(Protocol):
    """Functions of ``src/symbols.c``."""

    def count_bytes(self, data: Buffer, /) -> bytes:
        """How often each byte occurs, uint64 [256]."""

    def measure_runs(self, runs: Buffer, count: int, /) -> tuple[bool, int]:
        """Whether run bytes stay within ``count`` symbols, and how many values belong to them (section 7.2.5)."""


class Split(Protocol):
    """Functions of ``src/split.c``."""

    def split_payloads(self, memory: Buffer, splits: tuple[Buffer, Buffer, Buffer, Buffer], /) -> None:
        """Find and check the symbols of payloads of dctq.v1 that lie in ``memory``.

        Args:
            splits: four buffers, the last two of which are filled.
                Of each payload uint64 [n, 10]: place, size, patches, symbols of a patch; where the class map and the
                run counts begin and where the sections of fixed size end, all from the payload's start on; whether the
                quantiser is affine; the first row of the next two buffers and how many, 0 to leave the payload alone.
                Of each class uint64 [m, 2]: alphabet, and whether it is sparse.
                Of each class uint64 [m, 5]: symbols, start and stop of run bytes, start and stop of packed symbols.
                Of each payload a byte: 1 if nothing is wrong with all but the scales and the multipliers.
        """


class Digest(Protocol):
    """Functions of ``src/digest.c``."""

    def leaf_digests(self, data: Buffer, size: int, /) -> bytes:
        """SHA-256 of the first leaves of ``size`` bytes, 32 bytes each: of as many as are worth it, perhaps none.

        Args:
            size: a multiple of 64.
        """


class Inflate(Protocol):
    """Functions of ``src/inflate.c``."""

    def inflate_chunks(
        self,
        stored: Buffer,
        offsets: Buffer,
        checksums: Buffer,
        chunk_size: int,
        out: Buffer,
        zstd: tuple[int, int, int, int],
        /,
    ) -> bool:
        """The raw bytes of consecutive chunks; False if one of them is not plainly right.

        Args:
            offsets: uint64, where each chunk begins in the file, and where the last one ends.
            checksums: uint32, crc32c of each chunk as it is stored.
            zstd: addresses of ZSTD_createDCtx, ZSTD_freeDCtx, ZSTD_decompressDCtx and ZSTD_findFrameCompressedSize.
        """

    def inflate_payloads(
        self,
        descriptor: int,
        offsets: Buffer,
        checksums: Buffer,
        payloads: Buffer,
        chunk_size: int,
        out: Buffer,
        threads: int,
        zstd: tuple[int, int, int, int],
        splits: tuple[Buffer, Buffer, Buffer, Buffer],
        as_stored: bool,
        /,
    ) -> bytes:
        """Read payloads from an open file; of each 1 if all of its chunks are plainly right.

        Args:
            offsets, checksums: of all chunks of the file, as for :meth:`inflate_chunks`.
            payloads: uint64 [n, 3]: first chunk, place in ``out``, raw bytes.
            splits: for :meth:`Split.split_payloads`, done with each payload that is right; or four buffers of no bytes.
            as_stored: put the chunks into ``out`` as they lie in the file, one after another, checked but for what
                only decompressing shows; no splits then.
        """

    def crc32c(self, data: Buffer, portable: bool, /) -> int:
        """The checksum; ``portable`` without the processor's instruction for it."""


class Encode(Protocol):
    """Functions of ``src/encode.c``: see ``ddct_format/backends/encoder.py`` for what they mean.

    A band is given as base, its element type, target, its element type, and columns; element types are numbers, BF16,
    F16 and F32 in this order. Buffers of no bytes stand for what is absent.
    """

    def difference(
        self,
        base: Buffer,
        base_type: int,
        target: Buffer,
        target_type: int,
        cols: int,
        scale: float,
        out: Buffer,
        row_squares: Buffer,
        col_squares: Buffer,
        /,
    ) -> None:
        """The delta times ``scale``, float32; its squares are summed to float64, those of columns on top."""

    def power_band(
        self,
        base: Buffer,
        base_type: int,
        target: Buffer,
        target_type: int,
        cols: int,
        scale: float,
        stride: int,
        vectors: Buffer,
        projected: Buffer,
        returned: Buffer,
        row_squares: Buffer,
        col_squares: Buffer,
        /,
    ) -> None:
        """Fills the four results for the delta times ``scale``.

        Args:
            stride: floats of a row of ``vectors``, ``projected`` and ``returned``, a multiple of 16.
        """

    def delta_sums(
        self, base: Buffer, base_type: int, target: Buffer, target_type: int, /
    ) -> tuple[float, float, float, bool]:
        """Energy, magnitude, largest, finite."""

    def quantise_band(
        self,
        base: Buffer,
        base_type: int,
        target: Buffer,
        target_type: int,
        cols: int,
        rows: Buffer,
        patch: int,
        analysis: Buffer,
        mirrored: bool,
        scale: float,
        unit: float,
        rounding: float,
        rank: int,
        left: Buffer,
        right: Buffer,
        col_order: Buffer,
        bin_edges: Buffer,
        symbols: Buffer,
        activity: Buffer,
        counts: Buffer,
        sums: Buffer,
        /,
    ) -> float:
        """Fills symbols, activity, counts and sums; the energy.

        Args:
            rows: int64, which rows the band has.
        """

    def patch_energies(
        self, base: Buffer, base_type: int, target: Buffer, target_type: int, cols: int, patch: int, out: Buffer, /
    ) -> None:
        """Fills ``out``, float64."""

    def affine_band(
        self,
        base: Buffer,
        base_type: int,
        target: Buffer,
        target_type: int,
        cols: int,
        patch: int,
        analysis: Buffer,
        mirrored: bool,
        basis: Buffer,
        scale: float,
        alphabets: Buffer,
        symbols: Buffer,
        minima: Buffer,
        steps: Buffer,
        /,
    ) -> tuple[float, float, float]:
        """Fills symbols, minima and steps; magnitude, energy, aligned."""

    def ulp_count(
        self,
        before: Buffer,
        target: Buffer,
        type: int,
        shift: int,
        cols: int,
        row_keys: Buffer,
        col_keys: Buffer,
        counts: Buffer,
        /,
    ) -> None:
        """Add to ``counts``, int64 [1527, 256], how often each symbol of ulp.v1 stands in each context.

        Args:
            before: the prediction, rounded to the target's element type, which is ``type``.
        """

    def ulp_measure(
        self,
        before: Buffer,
        target: Buffer,
        type: int,
        shift: int,
        cols: int,
        row_keys: Buffer,
        col_keys: Buffer,
        group_of: Buffer,
        totals: Buffer,
        /,
    ) -> None:
        """Add to ``totals``, int64 [2, 256], the elements of each group and their extra bits; see ``ulp_scatter``."""

    def ulp_row_sizes(
        self, before: Buffer, target: Buffer, type: int, cols: int, weights: Buffer, sizes: Buffer, /
    ) -> None:
        """Weighted sums of |target − before|, of at most 2^60 and 0 where it is not finite, of each row.

        Args:
            weights: float32 [cols].
            sizes: float32 [rows], for the result.
        """

    def ulp_scatter(
        self,
        before: Buffer,
        target: Buffer,
        type: int,
        shift: int,
        cols: int,
        row_keys: Buffer,
        col_keys: Buffer,
        group_of: Buffer,
        symbols: Buffer,
        places: Buffer,
        extra: Buffer,
        positions: Buffer,
        /,
    ) -> None:
        """Write each symbol to the next place of its group, and its extra bits to the next position of its group.

        Args:
            group_of: uint8 [1527], the group of each context.
            places, positions: int64 [256], of each group, in bytes of ``symbols`` and in bits of ``extra``, which is
                zero where nothing was written.
        """

    def pack_class(
        self, symbols: Buffer, class_map: Buffer, number: int, alphabet: int, sparse: bool, /
    ) -> tuple[bytes, bytes]:
        """Run bytes, none for a dense class, and packed symbols or values."""


class Dctq(Protocol):
    """Functions of ``src/dctq.c``."""

    def dctq_open(
        self,
        payload: Buffer,
        shape: tuple[int, int, int],
        transform: int,
        affine: bool,
        rank: int,
        sections: tuple[int, ...],
        keys: tuple[bool, bool],
        classes: list[tuple[bytes, int, int, int, int, int]],
        /,
    ) -> object:
        """Get a layer of dctq.v1 ready to be decoded, once; it keeps the payload alive.

        Args:
            payload: as ``split_payload`` has checked it.
            shape: rows and columns of the view, and the patch size.
            transform: 0 dct, 1 hadamard, 2 none.
            sections: where ``scales``, ``multipliers``, ``row_keys``, ``col_keys``, ``left``, ``right``, ``class_map``
                and ``ranges`` begin, and how many patches have ranges.
            keys: whether rows and columns have them.
            classes: of each the levels as int8, number of symbols, start and stop of the packed bytes, and of
                the run bytes, −1 for a dense class.

        Raises:
            MemoryError: it takes 2 bytes for each column and term, 8 for each row with a key, and with column keys
                4 for each column and a row of patches as float32.
        """

    def dctq_decode(
        self,
        layer: object,
        base: Buffer | None,
        base_type: int,
        out: Buffer,
        out_type: int,
        budget: int,
        wanted: Buffer | None,
        /,
    ) -> int:
        """Go on decoding for about ``budget`` elements; types are 0 BF16, 1 F16, 2 F32.

        Args:
            base: the base's bytes, or None for the delta itself, as float32. The same in every call, as ``out`` is.
            wanted: what ``out`` is compared with, of its type and size.

        Returns:
            Bytes of ``out`` that are finished.
        """

    def dctq_error(self, layer: object, /) -> float:
        """Sum of the squared differences to what was wanted; infinite if one is not finite."""


class Ulp(Protocol):
    """Functions of ``src/ulp.c``. Element types are 0 BF16, 1 F16, 2 F32."""

    def ulp_open(
        self,
        payload: Buffer,
        before: Buffer,
        before_type: int,
        out_type: int,
        shape: tuple[int, int],
        shift: int,
        keys: tuple[bool, bool],
        group_of: bytes,
        sparse: bytes,
        /,
    ) -> object:
        """Get a layer of ulp.v1 ready to be decoded, once; it keeps payload and prediction alive.

        Args:
            before: the tensor so far.
            shape: rows and columns of the view.
            keys: whether rows and columns have them.
            group_of: the group of each of the 1527 contexts.
            sparse: a byte for each group, other than 0 if it is sparse.

        Returns:
            The layer; or a str, what is wrong with the payload.
        """

    def ulp_decode(self, layer: object, out: Buffer, budget: int, /) -> int:
        """Go on decoding for about ``budget`` elements.

        Args:
            out: the same in every call; it may be the tensor so far, if that is of the same type.

        Returns:
            Bytes of ``out`` that are finished; or −1, if a residual leads beyond the element type's patterns.
        """


class Core(Blocks, Dctq, Digest, Encode, Inflate, InstructionSets, Split, Symbols, Ulp, Protocol):
    """All of it."""
