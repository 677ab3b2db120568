"""Checkpoints of models that no process holds alone: each writes and reads its part.

Begin with `state`. It may import the rest of `checkpoint`, `files`, `distributed` and `errors`.

- `state`: the state of models and optimizers, whole or in parts.
- `shards`: the directory in which the parts of one save lie.
- `dcp`: parts of FSDP2 models, through `torch.distributed.checkpoint`.
- `deepspeed`: parts of DeepSpeed's engines, in its own files.
"""

from __future__ import annotations

__all__: list[str] = []
