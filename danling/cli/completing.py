"""`completion`: verbs, options, run ids and columns, in bash, zsh and fish."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from danling.cli.output import Output
from danling.errors import DanLingError
from danling.experiments.collection import runs

__all__ = ["EXAMPLES", "candidates"]


EXAMPLES = {
    "completion": """\
  eval "$(danling completion bash)"              in ~/.bashrc
  eval "$(danling completion zsh)"               in ~/.zshrc
  danling completion fish > ~/.config/fish/completions/danling.fish"""
}

_SCRIPTS = {
    "bash": """\
_danling() {
    local IFS=$'\\n'
    COMPREPLY=($(danling __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _danling danling
""",
    "zsh": """\
_danling() {
    local -a found
    found=("${(@f)$(danling __complete "${words[@]:1:$CURRENT-1}" 2>/dev/null)}")
    compadd -a found
}
compdef _danling danling
""",
    "fish": """\
complete -c danling -f -a '(danling __complete (commandline -opc)[2..] (commandline -ct))'
""",
}
_KEYS_AFTER = ("-s", "--sort", "-c", "--columns", "-m", "--metric", "-F", "--filter")
_WORDS = ("@1", "@best", "@failed", "@killed", "@running", "@all")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """The options of `completion`."""
    parser.add_argument("shell", choices=tuple(_SCRIPTS))


def run_completion(options: Any, output: Output) -> int:
    """The script that a shell reads."""
    if output.json:
        output.data({"shell": options.shell, "script": _SCRIPTS[options.shell]})
    else:
        output.text(_SCRIPTS[options.shell])
    return 0


def candidates(
    words: Sequence[str],
    verbs: Iterable[str],
    build_parser: Callable[[Sequence[str]], argparse.ArgumentParser],
) -> list[str]:
    """The words that the last of some words after `danling` may become."""
    *before, word = words or [""]
    verb = next((known for known in before if known in verbs), None)
    if verb is None:
        found: list[str] = list(verbs)
    elif word.startswith("-"):
        parser = build_parser([verb])._subparsers._group_actions[0].choices[verb]  # type: ignore[union-attr, index]  # argparse has no public way
        found = [option for action in parser._actions for option in action.option_strings]
    else:
        found = _of_runs(before, root=_root(before))
    return [name for name in found if name.startswith(word)]


def _root(words: Sequence[str]) -> str | None:
    return words[words.index("-C") + 1] if "-C" in words[:-1] else None


def _of_runs(before: Sequence[str], root: str | None) -> list[str]:
    with suppress(DanLingError):
        found = runs(root)
        if before[-1] in _KEYS_AFTER:
            return found.columns()
        names = dict.fromkeys(run.name for run in found)
        return [*_WORDS, *names, *(run.id for run in found), *(run.uuid[:8] for run in found)]
    return []
