"""The configuration of a run: typed values, files, the command line.

Begin with `config`; `settings` has the keys that the library itself reads. It may import `files`,
`errors`, and of `identity` what recognises secrets.

- `config`: `Config`, what a user sets, and the state that a runner binds to it.
- `mapping`: mappings of typed values, by attribute or by dotted key, merged and compared.
- `types`: which types a field may have, and how values become these types without loss.
- `fields`: the keys that a class declares by annotation, as dataclasses do.
- `settings`: the well-known keys, each with type, default, help and identity.
- `frozen`: copies of values, and lists and dicts that refuse to be changed.
- `files`: configurations in .yaml, .yml and .json files, and files that extend others.
- `references`: `${optim.lr}` in files and on the command line.
- `yaml`: YAML 1.2, and no key twice.
- `scalars`: what an unquoted word means in YAML and on the command line.
- `description`: the keys as data, with type, default, help and identity.
- `naming`: the name of a run that nobody named.
- `command_line`: configurations from the command line, and the text of `--help`.
"""

from __future__ import annotations

from danling.config.config import Config
from danling.config.description import Key, describe_keys
from danling.config.fields import Minimum, NotInRunId
from danling.config.mapping import ABSENT, MissingKeyError

__all__ = [
    "ABSENT",
    "Config",
    "Key",
    "Minimum",
    "MissingKeyError",
    "NotInRunId",
    "describe_keys",
]
