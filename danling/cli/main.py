"""The verbs of the command line, and what they have in common."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from danling.cli.output import Output
from danling.errors import DanLingError

__all__ = ["FAILED", "MISUSED", "OK", "VERBS", "build_parser", "main"]


OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: fine; nothing found, or failed; wrong usage, or ambiguous; Ctrl-C."""


class Verb(NamedTuple):
    """A verb: the module that has it, and what it does."""

    module: str
    help: str


VERBS = {
    "ls": Verb("listing", "list runs"),
    "show": Verb("showing", "everything about a run"),
    "diff": Verb("showing", "what differs between two runs"),
    "best": Verb("listing", "the best runs, or the file of the best"),
    "seeds": Verb("listing", "means over seeds, a row per configuration"),
    "plot": Verb("curves", "draw curves in the terminal"),
    "logs": Verb("following", "the log of a run"),
    "watch": Verb("following", "a table of runs that keeps up with them"),
    "resume": Verb("running", "the command that goes on with a run"),
    "rerun": Verb("running", "the command that runs a run's exact code again"),
    "sweep": Verb("running", "run many configurations of a script"),
    "tensorboard": Verb("serving", "start TensorBoard on some runs"),
    "tag": Verb("keeping", "add and remove tags"),
    "note": Verb("keeping", "add a remark"),
    "rm": Verb("keeping", "move runs to the trash"),
    "restore": Verb("keeping", "bring runs back from the trash"),
    "gc": Verb("keeping", "free disk space"),
    "export": Verb("exporting", "tables as csv, json, jsonl, markdown, latex"),
    "report": Verb("exporting", "one self-contained HTML file"),
    "verify": Verb("checking", "check ids, files, checkpoints and code"),
    "doctor": Verb("checking", "versions, devices, disk: a block for an issue"),
    "completion": Verb("completing", "completion for bash, zsh and fish"),
}

_TAKES_FLAGS = ("rerun", "sweep")  # of the script, besides their own

_EPILOG = """\
runs are selected by words:
  a1b2          the run of which a part of the id begins so
  digits-*      by name; also the path of a directory
  @1 @best      the newest, the best; @failed, @killed, @running, @all
  -F EXPR       'val.accuracy > .9 and optim.lr in [1e-3, 3e-4] and age < "2d"'

examples:
  danling ls -F 'status != "failed"' -s -val.accuracy
  danling diff @1 @best
  danling sweep train.py --optim.lr 1e-3,1e-4 --seed 0..4 -j 2
  danling report @all -o report.html

They are looked for in -C DIR, DANLING_ROOT, or the nearest `experiments` upwards.
`danling VERB --help` has the options of a verb.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: The words after `danling`; those of this process if None.
    """
    words = _with_orders(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["__complete"]:
        return _complete(words[1:])
    parser = build_parser(words)
    options, flags = parser.parse_known_args(words)
    options.flags = flags
    if options.flags and options.verb not in _TAKES_FLAGS:
        parser.error(f"unrecognized: {' '.join(options.flags)}; see danling {options.verb} --help")
    if options.verb is None:
        parser.print_help()
        return MISUSED
    try:
        output = Output(options.json, options.no_color)
        code = _run(options, output)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED


def _with_orders(words: Sequence[str]) -> list[str]:
    """The words, with `-s -val.loss` as one: argparse takes its end for an option."""
    found: list[str] = []
    for word in words:
        if found and found[-1] in ("-s", "--sort") and word.startswith("-"):
            found[-1] += word if found[-1] == "-s" else f"={word}"
        else:
            found.append(word)
    return found


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line: of its verb alone, since the others would only take time."""
    parser = argparse.ArgumentParser(
        prog="danling",
        description="Runs of DanLing: list, compare, repeat, keep.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"danling {_version()}")
    asked = next((word for word in words if word in VERBS), None)
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        module = import_module(f"danling.cli.{verb.module}") if asked in (name, "*") else None
        epilog = f"examples:\n{module.EXAMPLES[name]}" if module else None
        subparser = subparsers.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if module is not None:
            _add_common(subparser)
            getattr(module, f"add_{name}")(subparser)
            subparser.set_defaults(run=getattr(module, f"run_{name}"))
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-C", dest="root", metavar="DIR", help="the folder of the runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--no-color", action="store_true", help="print no colours")


def _run(options: Any, output: Output) -> int:
    from danling.experiments.selection import SelectionError

    try:
        result: int = options.run(options, output)
        return result
    except SelectionError as error:
        output.error(str(error))
        return MISUSED if error.candidates else FAILED
    except DanLingError as error:
        output.error(str(error))
        return MISUSED if isinstance(error, ValueError) else FAILED
    except ImportError as error:
        output.error(str(error))
        return FAILED


def _complete(words: Sequence[str]) -> int:
    from danling.cli.completing import candidates

    print("\n".join(candidates(words, VERBS, build_parser)))
    return OK


def _version() -> str:
    if not {"--version"} & set(sys.argv[1:2]):
        return ""  # looking it up takes time
    import danling

    return danling.__version__
