"""Access tokens: read when they are needed, from files that nobody else can read, and never shown."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ddct_format.container.remote import hide_signatures
from ddct_format.errors import HubError

__all__ = ["read_token", "scrub"]

_MAX_TOKEN_BYTES = 4096


def read_token(token_file: str | None) -> str | None:
    """The token of ``token_file``; by default of HF_TOKEN or of what ``hf auth login`` stored; None if there is none.

    Read anew by every job, so that a rotated token is taken up.

    Raises:
        HubError: the file cannot be read, holds no token, or others than its owner may read it.
    """
    from huggingface_hub import constants, get_token

    if token_file is None:
        if not os.environ.get("HF_TOKEN") and Path(constants.HF_TOKEN_PATH).exists():
            _read_private(Path(constants.HF_TOKEN_PATH))
        return get_token()
    token = _read_private(Path(token_file)).strip()
    if not token or not token.isascii() or not token.isprintable():
        raise HubError("does not hold a token", place=token_file)
    return token


def scrub(text: str, token: str | None) -> str:
    """``text`` without the token and without the signatures of signed URLs."""
    text = hide_signatures(text)
    return text.replace(token, "***") if token else text


def _read_private(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise HubError(f"the token cannot be read: {(error.strerror or str(error)).lower()}", place=path) from error
    if stat.S_IMODE(mode) & 0o077:
        raise HubError(
            f"others may read this token (mode {stat.S_IMODE(mode):04o}): chmod 600, and replace the token", place=path
        )
    if len(raw) > _MAX_TOKEN_BYTES:
        raise HubError("is too large for a token", place=path)
    return raw.decode("utf-8", "replace")
