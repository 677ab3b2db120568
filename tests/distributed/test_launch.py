"""A process group is made for a later attempt of torchrun only: see the tests of launchers."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from danling.distributed.launch import join_after_restart


@pytest.mark.parametrize(("attempt", "agent"), [("0", "True"), ("2", "False")])
def test_nothing_is_made_in_a_first_attempt_or_without_an_agent(
    attempt: str, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)

    join_after_restart()

    assert not dist.is_initialized()
