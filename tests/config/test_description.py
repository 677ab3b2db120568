from __future__ import annotations

from typing import Annotated, Literal

from danling import Config
from danling.config import NotInRunId, describe_keys
from danling.config.fields import REQUIRED
from danling.config.settings import SETTINGS


class Optim(Config):
    lr: float = 1e-3  # learning rate


class Training(Config):
    optim: Optim = Optim(lr=0.5)
    data: Annotated[str, NotInRunId]
    # what is
    # trained
    kind: Literal["mlp", "cnn"] = "mlp"
    max_epochs: int = 20


def test_every_key_has_its_type_default_help_and_identity():
    own, _ = describe_keys(Training)

    assert [(key.name, key.type, key.default, key.help, key.in_run_id) for key in own] == [
        ("optim.lr", "a float", 0.5, "learning rate", True),
        ("data", "a string", REQUIRED, "", False),
        ("kind", "one of 'mlp', 'cnn'", "mlp", "what is trained", True),
        ("max_epochs", "an int", 20, "epochs to train for", True),
    ]


def test_the_keys_of_every_run_are_the_well_known_ones_with_help():
    own, settings = describe_keys()

    assert own == []
    assert [key.name for key in settings] == list(SETTINGS)
    assert all(key.help for key in settings)
    by_name = {key.name: key for key in settings}
    assert "num_workers" in by_name["dataloader"].not_in_run_id
    assert not by_name["code_timeout"].in_run_id
    assert "max_epochs" not in {key.name for key in describe_keys(Training)[1]}
