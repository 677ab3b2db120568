"""The contents of a checkpoint of a run, and how a run loads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from danling.checkpoint.encoding import named
from danling.checkpoint.sharded.state import differences, plain_names, renamed
from danling.config import Config
from danling.data.splits import Splits
from danling.distributed.world import World
from danling.errors import CheckpointError, ResumeError
from danling.metrics.logbook import Logbook
from danling.optimization.hyperparameters import made_with, restore_optimization
from danling.optimization.optimization import Optimization
from danling.runner.members import Watch, lost, state_problems, stateless
from danling.runner.resume import (
    check_complete,
    check_model,
    check_optimization,
    check_weights,
    kinds,
    obstacles,
    optimization_problems,
    refuse_unfit,
    surrounding_changes,
    surroundings,
)
from danling.seed import derive, rng_state, seed_everything

__all__ = ["Contents"]


class Contents:
    """The contents of a checkpoint of a run: taken, compared with what there is, and put back.

    Args:
        config: The configuration of the run.
        world: The processes of the run.
        accelerator: The accelerator that placed the model.
        data: The data by split, and where its loaders are.
        logbook: The values that were not logged yet.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        accelerator: Accelerator,
        data: Splits,
        logbook: Logbook,
    ) -> None:
        self._config = config
        self._world = world
        self._accelerator = accelerator
        self._data = data
        self._logbook = logbook
        self._watch = Watch()
        self.members: dict[str, Any] = {}
        """The modules and objects whose state is saved besides that of the model, by name."""

    def modules(self, optimization: Optimization) -> dict[str, nn.Module]:
        """The modules of the run by name, the model among them."""
        found = {"model": optimization.model_state.plain, **self.members}
        return {name: part for name, part in found.items() if isinstance(part, nn.Module)}

    def begin(self, optimization: Optimization) -> None:
        """Remember how the modules are before the training: what it changes is saved."""
        self._watch.begin(self.modules(optimization))

    def lost(
        self, optimization: Optimization, states: Mapping[str, Any] | None = None
    ) -> list[str]:
        """A line for each thing that optimizers and schedulers have and no checkpoint holds."""
        if optimization.model_state.is_partial:
            return stateless(optimization.schedulers)  # its parameters are parts of others
        if states is None:
            states = {name: member.state_dict() for name, member in self.members.items()}
        found = lost(optimization.optimizers, self.modules(optimization), states.values())
        return found + stateless(optimization.schedulers)

    def take(
        self,
        optimization: Optimization,
        common: Mapping[str, Any],
        *,
        places: Mapping[str, int],
        unsafe: str | None,
        alone: bool = False,
    ) -> dict[str, Any]:
        """Everything that the run needs to go on from here; a collective unless `alone`.

        Args:
            optimization: The model's state and the optimizers.
            common: The state that every runner saves, and the weights.
            places: The number of batches that were used of each split in this epoch.
            unsafe: Why no run could go on exactly from here; None at a safe point.
            alone: Whether only this process takes part.
        """
        gather: Callable[[Any], list[Any]] = self._world.gather
        if alone:
            gather = _alone
        whole, data = alone or optimization.model_state.whole, common["data"]
        states = {
            name: plain_names(state) if isinstance(self.members[name], nn.Module) else state
            for name, member in self.members.items()
            if (state := member.state_dict())
        }
        return {
            "model": common["model"],
            **optimization.state_dict(whole),
            "stateful": states,
            **common,
            "data": {
                **data,
                "loaders": gather(self._data.state_dict(data["epoch"], places)),
                "open": gather(self._logbook.state_dict()),
            },
            "rng": gather(rng_state()),
            "run": {
                **common["run"],
                "unsafe": unsafe,
                "surroundings": surroundings(self._accelerator),
                "kinds": kinds(optimization),
                "given": made_with(optimization),
                "changed": gather(self._watch.changed(self.modules(optimization))),
                "lost": self.lost(optimization, states),
            },
        }

    def compare(
        self,
        checkpoint: Mapping[str, Any],
        path: Path,
        accum_steps: int,
        strict: bool,
        with_callbacks: AbstractContextManager[Optimization],
    ) -> list[str]:
        """Why the continuation will not be exact, all of which was asked for or cannot be helped.

        Callbacks take their state first: one that has given an optimizer a group, or the runner
        another part, can do so again.

        Raises:
            CheckpointError: The checkpoint does not fit.
            ResumeError: It does, but the continuation would not be the one that was asked for.
        """
        check_complete(checkpoint, path)
        saved, run = checkpoint.get("stateful"), checkpoint["run"]
        with with_callbacks as optimization:
            wrong, other, missing = state_problems(self.members, saved)
            refuse_unfit(path, wrong + other if strict or wrong else [])
            left_out = check_model(optimization, checkpoint, path, strict=strict)
            left_out += check_optimization(optimization, checkpoint, path, strict=strict)
            if optimization.optimizers:
                left_out += other + missing + run.get("lost", [])
            return left_out + self._compare_run(checkpoint, path, accum_steps, strict)

    def _compare_run(
        self, checkpoint: Mapping[str, Any], path: Path, accum_steps: int, strict: bool
    ) -> list[str]:
        run = checkpoint["run"]
        self._adopt_drawn_seed(checkpoint["config"])
        try:
            doubts = self._restore_loaders(checkpoint)
        except ResumeError as error:
            self._data.forget_loaders()
            if strict:
                raise
            doubts = [str(error)]
        found = obstacles(run, {"world_size": self._world.size, "accum_steps": accum_steps})
        if found and strict and not self._config.elastic:
            self._data.forget_loaders()
            raise ResumeError(
                f"{path} cannot be continued exactly: {'; '.join(found)}. The ways out: put the "
                "old values back; or pass elastic=True to go on with the new ones, not bit for bit "
                "as before; or take what fits with load_checkpoint(path, strict=False)"
            )
        then, now = run.get("surroundings", {}), surroundings(self._accelerator)
        return found + doubts + surrounding_changes(then, now)

    def restore_model_and_optimizers(
        self, optimization: Optimization, checkpoint: Mapping[str, Any], path: Path, strict: bool
    ) -> Mapping[str, Any]:
        """Load model, optimizers and schedulers; returns the checkpoint with what is in shards."""
        fits = not optimization_problems(optimization, checkpoint)  # else they are left out
        model_state, optimizers = optimization.model_state, optimization.optimizers
        self._load_members(checkpoint.get("stateful") or {}, strict)
        checkpoint = model_state.read(checkpoint, path, self._world, optimizers, fits=fits)
        if model_state.plain is not None:
            model_state.load(checkpoint["model"], strict=strict)
        if fits:
            restore_optimization(optimization, checkpoint)
        return checkpoint

    def restore_changes(
        self, optimization: Optimization, checkpoint: Mapping[str, Any]
    ) -> list[str]:
        """Put back modes, frozen parameters and attributes of modules; returns what is not exact.

        Also what optimizers have made of their state that is other than it was saved.
        """
        changed = checkpoint["run"].get("changed")
        reasons: list[str] = []
        if changed is not None:
            own = changed[self._world.rank if len(changed) == self._world.size else 0]
            reasons += self._watch.restore(self.modules(optimization), own)
        states = named(checkpoint["optimizer"])
        for name in optimization.optimizers.keys() & states.keys():
            if not optimization.model_state.is_partial:
                reasons += differences(optimization.optimizers[name], states[name])
        lost_then = checkpoint["run"].get("lost", [])
        return reasons + [line for line in self.lost(optimization) if line not in lost_then]

    def _load_members(self, states: Mapping[str, Any], strict: bool) -> None:
        for name in self.members.keys() & states.keys():
            member = self.members[name]
            try:
                if isinstance(member, nn.Module):
                    member.load_state_dict(renamed(member, states[name]), strict=strict)
                else:
                    member.load_state_dict(states[name])
            except Exception as error:
                raise CheckpointError(f"the state of {name!r} does not load: {error!r}") from error

    def restore_weights(
        self, optimization: Optimization, checkpoint: Mapping[str, Any], path: Path
    ) -> list[str]:
        """Load the weights of a file that has nothing else; returns what was left out.

        Raises:
            CheckpointError: The shape of a weight is another one.
        """
        model_state = optimization.model_state
        left_out = check_weights(model_state, checkpoint["model"], path)
        whole = model_state.read(checkpoint, path, self._world, optimization.optimizers)
        model_state.load(whole["model"], strict=False)
        self._load_members(checkpoint.get("stateful") or {}, strict=False)
        return left_out

    def restore_streams(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Take the open averages of this process; returns the state of its random streams.

        Where the number of processes has changed, the main one goes on with the sums of all, and a
        process that was not there begins streams of its own.
        """
        rank, open_values = self._world.rank, checkpoint["data"]["open"]
        streams: Sequence[dict[str, Any]] = checkpoint["rng"]
        if len(open_values) == self._world.size:
            self._logbook.load_state_dict(open_values[rank])
        elif rank == 0:
            self._logbook.load_state_dict(*open_values)
        if rank < len(streams):
            return streams[rank]
        seed = derive(int(self._config.seed or 0), "step", checkpoint["data"]["global_step"])
        seed_everything(seed, rank)
        return rng_state()

    def places(self, checkpoint: Mapping[str, Any]) -> dict[str, int]:
        """The number of batches that were used of each split in the epoch of a checkpoint."""
        return {split: state["batch_index"] for split, state in self._loaders(checkpoint).items()}

    def _restore_loaders(self, checkpoint: Mapping[str, Any]) -> list[str]:
        """Set the loaders to where they were; returns why they are not exactly there."""
        return self._data.load_state_dict(self._loaders(checkpoint), elastic=self._config.elastic)

    def _loaders(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
        states = checkpoint["data"]["loaders"]
        found: Mapping[str, Any] = states[0]
        if len(states) == self._world.size:
            found = states[self._world.rank]
        return found

    def _adopt_drawn_seed(self, saved: Mapping[str, Any]) -> None:
        """Go on with the seed that the run drew, where this process was not given one either."""
        if self._config.drawn_seed and saved["seed"] != self._config.seed:
            self._config.record_drawn_seed(saved["seed"])
            self._data.forget_loaders()


def _alone(value: Any) -> list[Any]:
    return [value]
