"""What a generative model answers to the same prompts, while it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from danling.callback import Callback
from danling.errors import CallbackError

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["GenerationSamples"]


class GenerationSamples(Callback):
    """Show what the model generates for some prompts, as a table through `runner.log_text`.

    It generates when an evaluation of the split begins, with the weights that are evaluated, in
    evaluation mode, and draws nothing from the random streams of the training. With a `tokenizer`,
    as those of `transformers`, it calls `model.generate(**tokenizer(prompts), **arguments)`; with
    `function` anything else. The last table is in `samples`.

    Of several processes the main one generates. It costs what generating takes, per evaluation that
    shows something; a step costs nothing. The number of evaluations is its state.

    Args:
        prompts: The prompts.
        tokenizer: The object that turns texts into the arguments of the model, and its tokens into
            texts by `batch_decode`.
        function: The function of model and prompts that gives a text for each; it takes the place
            of a tokenizer.
        split: The split at whose evaluations it generates.
        every_n_evaluations: The number of evaluations of the split from one table to the next.
        tag: The name that the table is shown under; None: `<split>/generated`.
        **arguments: The arguments of `model.generate`, as `max_new_tokens`.

    Attributes:
        samples: The prompts and texts of the last table, by the step at which they were generated.

    Raises:
        CallbackError: There is no prompt, or neither or both of a tokenizer and a function; or the
            model has no `generate`.

    Example:
        >>> samples = GenerationSamples(["Once"], function=lambda model, prompts: prompts)
        >>> samples.tag
        'val/generated'
    """

    name = "generation_samples"
    only_watches = True

    def __init__(
        self,
        prompts: Sequence[str],
        tokenizer: Any = None,
        *,
        function: Callable[[Any, list[str]], Sequence[str]] | None = None,
        split: str = "val",
        every_n_evaluations: int = 1,
        tag: str | None = None,
        **arguments: Any,
    ) -> None:
        if isinstance(prompts, str) or not prompts:
            raise CallbackError(f"GenerationSamples({prompts!r}): give a list of prompts")
        if (tokenizer is None) is (function is None):
            raise CallbackError("GenerationSamples: give a tokenizer or a function, one of both")
        if every_n_evaluations < 1:
            raise CallbackError(
                f"GenerationSamples(every_n_evaluations={every_n_evaluations}): at least 1"
            )
        self.prompts = list(prompts)
        self.tokenizer = tokenizer
        self.function = function
        self.split = split
        self.every_n_evaluations = every_n_evaluations
        self.tag = tag or f"{split}/generated"
        self.arguments = arguments
        self.samples: dict[int, list[tuple[str, str]]] = {}
        self._evaluations = 0

    def on_setup(self, runner: Runner) -> None:
        """Start anew, unless the runner goes on with a training of before."""
        if runner.global_step == 0:
            self._evaluations, self.samples = 0, {}

    def on_evaluate_start(self, runner: Runner, split: str) -> None:
        """Generate, with the weights that are evaluated."""
        if split != self.split:
            return
        is_due = self._evaluations % self.every_n_evaluations == 0
        self._evaluations += 1
        if not is_due or not runner.is_main_process:
            return
        texts = [str(text) for text in self._generate(runner)]
        pairs = list(zip(self.prompts, texts, strict=True))
        self.samples = {runner.global_step: pairs}
        runner.log_text(self.tag, table(pairs))

    def state_dict(self) -> dict[str, Any]:
        """The number of evaluations, and the last table."""
        return {
            "evaluations": self._evaluations,
            "samples": {
                step: [list(pair) for pair in pairs] for step, pairs in self.samples.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._evaluations = state["evaluations"]
        self.samples = {
            step: [(prompt, text) for prompt, text in pairs]
            for step, pairs in state["samples"].items()
        }

    def _generate(self, runner: Runner) -> Sequence[str]:
        model = runner.unwrapped_model
        if self.function is not None:
            return self.function(model, self.prompts)
        if not callable(getattr(model, "generate", None)):
            raise CallbackError(
                f"GenerationSamples: {type(model).__name__} has no generate(): give `function`"
            )
        encoded: Mapping[str, Any] = self.tokenizer(self.prompts, return_tensors="pt", padding=True)
        given = {
            key: value.to(runner.device) if isinstance(value, Tensor) else value
            for key, value in encoded.items()
        }
        tokens = model.generate(**given, **self.arguments)
        texts: Sequence[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


def table(pairs: Sequence[tuple[str, str]]) -> str:
    r"""Prompts and texts as a table in Markdown.

    Example:
        >>> print(table([("a | b", "two\nlines")]))
        | prompt | text |
        |---|---|
        | a \| b | two<br>lines |
    """
    rows = [f"| {_cell(prompt)} | {_cell(text)} |" for prompt, text in pairs]
    return "\n".join(["| prompt | text |", "|---|---|", *rows])


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return "<br>".join(escaped.splitlines())
