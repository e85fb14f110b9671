"""How to reach a hub, beside where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["HubOptions"]


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Never holds a secret: options travel between processes and appear in messages.

    Attributes:
        endpoint: base URL of the service, if it is not the public one. For hf:// the environment
            variable HF_ENDPOINT does the same, for s3:// AWS_ENDPOINT_URL_S3.
        token_file: file with the access token for hf://; by default what ``hf auth login`` stored, or HF_TOKEN.
        public: whether a repository may be visible to everybody. If not, that it is private is read
            back before the first byte is sent.
        layout: how a repository at hf:// keeps checkpoints, see ``huggingface_layout``: ``folders`` or ``tags``; by
            default as it does already, and as folders in a new one.
    """

    endpoint: str | None = None
    token_file: str | None = None
    public: bool = False
    layout: Literal["folders", "tags"] | None = None
