"""Model directories: safetensors files, shards, side files, and outputs that are complete or absent."""

from __future__ import annotations

from ddct_format.checkpoint.digest_cache import DigestCache, default_cache
from ddct_format.checkpoint.model_directory import Checkpoint, Shard, TensorInfo, open_checkpoint
from ddct_format.checkpoint.output_directory import OutputDirectory, owner_of_temporary
from ddct_format.checkpoint.pages import Region, releasing, temporary_region
from ddct_format.checkpoint.safetensors_file import SafetensorsFile, SafetensorsWriter, StoredTensor
from ddct_format.checkpoint.side_files import SideFile, SkippedFile, is_training_state

__all__ = [
    "Checkpoint",
    "DigestCache",
    "OutputDirectory",
    "Region",
    "SafetensorsFile",
    "SafetensorsWriter",
    "Shard",
    "SideFile",
    "SkippedFile",
    "StoredTensor",
    "TensorInfo",
    "default_cache",
    "is_training_state",
    "open_checkpoint",
    "owner_of_temporary",
    "releasing",
    "temporary_region",
]
