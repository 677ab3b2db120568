from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from danling.callbacks import Freeze, LambdaCallback
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner, in_child


class TestContract(CallbackContract):
    changes_training = True

    def make(self):
        return Freeze("bias", until="6 steps")


class TestContractByEpoch(CallbackContract):
    changes_training = True

    def make(self):
        return Freeze("weight", until="1 epoch")


class Deep(TinyRunner):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model = nn.Sequential()
        self.model.add_module("backbone", nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
        self.model.add_module("head", nn.Linear(4, 3))
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1
        )


def weights_of(runner: TinyRunner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in runner.model.named_parameters()}


def changed(*callbacks, **config) -> list[set[str]]:
    """The parameters that each step changed."""
    kept: list[dict[str, torch.Tensor]] = []
    first = LambdaCallback(name="first", on_setup=lambda runner: kept.append(weights_of(runner)))
    each = LambdaCallback(
        name="each", on_batch_end=lambda runner, *_: kept.append(weights_of(runner))
    )
    Deep(config, callbacks=[*callbacks, first, each]).train()
    return [
        {name.partition(".")[0] for name in new if not torch.equal(new[name], old[name])}
        for old, new in itertools.pairwise(kept)
    ]


def test_what_is_frozen_does_not_change_for_good():
    assert changed(Freeze("backbone")) == [{"head"}] * 8


def test_a_part_is_unfrozen_after_so_many_epochs_or_steps():
    both = {"backbone", "head"}

    assert changed(Freeze("backbone", until="1 epoch")) == [{"head"}] * 4 + [both] * 4
    assert changed(Freeze("backbone.*", until="6 steps")) == [{"head"}] * 6 + [both] * 2


def test_several_unfreeze_a_model_bit_by_bit():
    head = Freeze("head", until="2 steps", name="freeze_head")
    steps = changed(Freeze("backbone.0", until="3 steps"), head)

    assert [len(step) for step in steps] == [1, 1, 2, 2, 2, 2, 2, 2]


def test_what_was_frozen_before_stays_so():
    runner = Deep(callbacks=[Freeze("backbone", until="1 step")])
    runner.model.backbone[0].bias.requires_grad_(False)
    runner.train()

    flags = {name: p.requires_grad for name, p in runner.model.named_parameters()}
    assert [name for name, trained in flags.items() if not trained] == ["backbone.0.bias"]


def test_frozen_batch_normalisation_keeps_its_statistics_where_asked():
    for train_bn, expected in ((True, 8), (False, 0)):
        runner = Deep(callbacks=[Freeze("backbone", train_bn=train_bn)])
        runner.train()

        assert int(runner.model.backbone[1].num_batches_tracked) == expected


class Wrapped(Deep):
    """With DistributedDataParallel, which allows no flags to change."""

    @property
    def unwrapped_model(self):
        return getattr(self.model, "module", self.model)

    def prepare(self):
        super().prepare()
        if not isinstance(self.model, nn.parallel.DistributedDataParallel):
            self.model = nn.parallel.DistributedDataParallel(self.model)


def distributed() -> None:
    kept: list[torch.Tensor] = []

    def keep(runner, *_):
        kept.append(runner.unwrapped_model.backbone[0].weight.detach().clone())

    callbacks = [Freeze("backbone", until="2 steps"), LambdaCallback(on_batch_end=keep)]
    runner = Wrapped(callbacks=callbacks)
    store = vars(torch.distributed)["HashStore"]()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    runner.train()

    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])


def test_gradients_are_left_out_where_flags_must_not_change():
    assert in_child(distributed) == 0


def test_a_pattern_without_a_match_is_answered_with_the_nearest():
    with pytest.raises(CallbackError, match="did you mean 'backbone'"):
        Deep(callbacks=[Freeze("backbon")]).train()


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="say what"):
        Freeze()
    with pytest.raises(CallbackError, match="in steps or epochs"):
        Freeze("head", until="3 min")
