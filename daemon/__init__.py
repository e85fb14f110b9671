"""The ddct daemon: watches a directory of checkpoints and publishes each one to a hub, packed.

``service`` is the run loop; ``planner`` decides what to do and is pure; everything else is a hand
or an eye of these two.
"""

from __future__ import annotations

__all__: list[str] = []
