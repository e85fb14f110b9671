"""Digests of all tensors of a model, read in pieces that are let go behind."""

from __future__ import annotations

from ..checkpoint import Checkpoint, DigestCache
from ..native.digest import tensor_hasher
from .parallel import map_finished
from .progress import Progress, Tally

__all__ = ["digest_model", "digest_stored"]

_PIECE = 4 << 20


def digest_stored(model: Checkpoint, name: str, *, done: bool = True) -> str:
    """The digest of a tensor of a checkpoint; a few MiB of it are in memory at a time.

    Args:
        done: see :meth:`Checkpoint.release`.
    """
    data = model.read(name)
    hasher = tensor_hasher()
    for start in range(0, data.nbytes, _PIECE):
        hasher.update(data[start : start + _PIECE])
        model.release(name, start, start + _PIECE, done=done)
    return hasher.hexdigest()


def digest_model(
    model: Checkpoint,
    threads: int,
    what: str,
    progress: Progress | None = None,
    *,
    cache: DigestCache | None = None,
) -> dict[str, str]:
    """The digest of every tensor, by name; computed once while the model is open.

    Args:
        what: is being done, for ``progress``.
        cache: where digests of unchanged files are taken from, and new ones left. Only for digests that are compared
            with those of the bytes themselves before anything depends on them (``spec/adr/0601-digest-cache.md``).
    """
    known = {**({} if cache is None else cache.lookup(model)), **model.digests}
    # The largest first: none of them is left over at the end, for one thread alone.
    names = sorted((name for name in model.tensors if name not in known), key=lambda name: -model.tensors[name].nbytes)
    tally = Tally(sum(model.tensors[name].nbytes for name in names), what, progress)
    for name, digest in map_finished(lambda name: (name, digest_stored(model, name)), names, threads):
        model.digests[name] = digest
        tally.add(model.tensors[name].nbytes)
    digests = {name: model.digests.get(name) or known[name] for name in model.tensors}
    if cache is not None and names:
        cache.store(model, digests)
    return digests
