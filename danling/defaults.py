"""The callbacks that every runner has unless it is told otherwise."""

from __future__ import annotations

from danling.callback import Callback

__all__ = ["default_callbacks"]


def default_callbacks() -> list[Callback]:
    """New instances of the default callbacks."""
    from danling.callbacks.logging import Logging
    from danling.callbacks.model_checkpoint import ModelCheckpoint
    from danling.callbacks.preemption import Preemption
    from danling.callbacks.progress_bar import ProgressBar
    from danling.callbacks.results import Results
    from danling.callbacks.run_directory import RunDirectory
    from danling.callbacks.run_record import RunRecord

    return [
        RunDirectory(),
        Logging(),
        RunRecord(),
        Results(),
        ModelCheckpoint(),
        ProgressBar(),
        Preemption(),
    ]
