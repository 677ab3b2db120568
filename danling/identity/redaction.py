r"""Secrets out of text: in what a run writes about its code, command line and environment.

Three kinds are recognised: keys that have a form of their own (AWS, GitHub, Hugging Face, OpenAI,
Slack, ..., private key blocks), values that are assigned to a name such as `password` or
`api_key`, and assigned values that look like random characters. The forms are those that the
providers document, as gitleaks and GitHub's secret scanning use them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import PurePath
from typing import Any

__all__ = ["MASK", "has_key", "is_key_file", "is_secret_name", "mask", "mask_argv", "mask_values"]


MASK = "***"
"""The text in the place of a secret."""

_KEY_FILES = (
    *(".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".npmrc", ".pypirc", ".pgpass"),
    *(".git-credentials", ".htpasswd", "credentials", "credentials.*", "secrets", "secrets.*"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "kubeconfig", "service?account*.json"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.asc"),
)
_KEY_FILES_PYTHON = (".py", ".pyi")  # secrets.py is code; what it holds is masked line by line

_BLOCK = re.compile(
    r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)"
    r"((?:(?!-----(?:BEGIN|END))[\s\S])*)"
)
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"  # GitHub, GitLab
    r"|hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|sk-(?=[\w-]{0,64}\d)[\w-]{20,}|[sr]k_(?:live|test)_\w{16,}"  # OpenAI, Stripe
    r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}"  # Slack
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}"  # Google
    r"|pypi-[\w-]{40,}|npm_[A-Za-z0-9]{36}|r8_[A-Za-z0-9]{30,}|dop_v1_[a-f0-9]{64}"
    r")|(?<![\w-])eyJ[\w-]{10,}+\.[\w-]{10,}+\.[\w-]*"  # JSON Web Token
)
_WEBHOOK = re.compile(r"(https://hooks\.slack\.com/(?:services|workflows)/)[\w/-]+")
_URL = re.compile(r"(?<![\w+.-])(\w[\w+.-]*+://[^\s/:@\"'{}$<>]*:)([^\s/@\"'{}$<>]+)(?=@)")
_USER_URL = re.compile(r"(?<![\w+.-])(\w[\w+.-]*+://)([^\s/:@\"'{}$<>]+)(?=@)")
_QUERY = re.compile(r"(?P<head>[?&;](?P<name>[\w.-]+)=)(?P<value>[^\s&;#\"'<>{}$]+)")
_HEADER = re.compile(r"\b((?:bearer|basic)\s+)([\w.~+/-]{16,}=*)", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]++)(?P<quote>[\"']?)(?P<sign>\]?[ \t]*+(?::=|=>|=|:(?!:))[ \t]*+)"
    r"(?P<value>\"{3}[^\"\n]+\"{3}|'{3}[^'\n]+'{3}"
    r"|[rbfu]?\"(?:[^\"\\\n]|\\.)*\"|[rbfu]?'(?:[^'\\\n]|\\.)*'|[^\s\"',;(){}\[\]&#]+)"
)
_COLLECTED = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]++)[\"']?\]?[ \t]*+(?::=|=>|=|:(?!:))[ \t]*+(?=[\[({])"
)
_LONGEST_COLLECTION = 4000  # characters up to the bracket that closes it
_LITERAL = re.compile(
    r"(?P<mark>[\"'])(?:(?!(?P=mark))[^\\\n]|\\.)*(?P=mark)(?P<is_key>\s*:)?|(?<![\w.])\d[\w.]*"
)
_PLACEHOLDER = re.compile(
    r"[\[<{$%*]|(?:none|null|true|false|nil|str|bytes|int|any)$", re.IGNORECASE
)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_PASSWORDS = {"password", "passwd", "pwd", "pass", "passphrase", "secret", "secrets", "apikey"}
_PASSWORDS |= {"credential", "credentials", "passcode", "pat", "pw", "passwords", "passwds"}
_AMBIGUOUS = {"pass", "pat"}  # of numbers: `second_pass = 2`
_SIGNATURES = {"sig", "signature", "key", "auth", "code"}  # secret in a query string alone
_PASSWORD_FLAGS = {"-p", "-pw", "-pass"}
_KEY_KINDS = {"api", "access", "secret", "private", "auth", "encryption", "signing", "account"}
_KEY_KINDS |= {"ssh", "master", "service", "deploy", "client"}
_RANDOM = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[A-Za-z0-9+/_-]{32,200}={0,2}")
_RANDOM_BITS = 4.4  # per character: base64 of random bytes has more, words and hex digits have less


def mask(text: str) -> str:
    r"""Replaces what looks like a secret; everything else, and the number of lines, stays.

    Example:
        >>> mask("password='hunter2'  # lr=0.1")
        "password='***'  # lr=0.1"
        >>> mask("--hub-token hf_" + "a1B2" * 8)
        '--hub-token ***'
        >>> mask("token = tokenizer.pad_token")
        'token = tokenizer.pad_token'
    """
    text = _BLOCK.sub(lambda found: found[1] + re.sub(r"[^\n]+", MASK, found[2]), text)
    text = _FORMS.sub(MASK, text)
    text = _WEBHOOK.sub(rf"\1{MASK}", text)
    text = _URL.sub(rf"\1{MASK}", text)
    text = _USER_URL.sub(_masked_user, text)
    text = _QUERY.sub(_masked_query, text)
    text = _masked_collections(text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    return _ASSIGNED.sub(_masked_assignment, text)


def has_key(text: str) -> bool:
    """Whether text, or binary content read as Latin-1, holds a key that has a form of its own."""
    return bool(_BLOCK.search(text) or _FORMS.search(text) or _WEBHOOK.search(text))


def mask_argv(argv: Sequence[str]) -> list[str]:
    """A command line without secrets: `--token x`, `--token=x` and `-p x` lose the `x`.

    Example:
        >>> mask_argv(["train.py", "--hub_token", "abc", "--lr", "0.1"])
        ['train.py', '--hub_token', '***', '--lr', '0.1']
    """
    masked: list[str] = []
    hide = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        is_option = argument.startswith("-")
        secret = is_secret_name(name) or name in _PASSWORD_FLAGS
        if hide and not is_option:
            masked.append(MASK)
        else:
            masked.append(f"{name}={MASK}" if secret and equals else mask(argument))
        hide = is_option and secret and not equals
    return masked


def mask_values(value: Any) -> Any:
    """A copy of nested dicts and lists in which secrets are masked.

    Under the name of a password everything is one: strings, numbers, lists and mappings.

    Example:
        >>> mask_values({"hub": {"token": "abc123"}, "pad_token": "<pad>", "lr": 0.1})
        {'hub': {'token': '***'}, 'pad_token': '<pad>', 'lr': 0.1}
    """
    if isinstance(value, Mapping):
        return {key: _masked_entry(str(key), entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask_values(entry) for entry in value]
    return mask(value) if isinstance(value, str) else value


def is_key_file(path: str) -> bool:
    """Whether a file, by its name, exists to hold secrets: `.env`, `id_rsa`, `*.pem`, ...

    Example:
        >>> is_key_file("config/.env"), is_key_file("train.py")
        (True, False)
    """
    name = PurePath(path).name.lower()
    return not name.endswith(_KEY_FILES_PYTHON) and any(fnmatch(name, key) for key in _KEY_FILES)


def is_secret_name(name: str) -> bool:
    """Whether what is stored under a name is a secret.

    Example:
        >>> [is_secret_name(name) for name in ("WANDB_API_KEY", "hubToken", "num_tokens", "key")]
        [True, True, False, False]
    """
    return _strength(name) > 0


def _strength(name: str) -> int:
    """2: a password, whatever its value; 1: a token, if its value looks like one; 0: neither."""
    words = [word.lower() for word in _WORDS.findall(name)]
    while words and words[-1].isdigit():
        words.pop()
    if not words:
        return 0
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _PASSWORDS or (last == "key" and before in _KEY_KINDS):
        return 2
    return 1 if last == "token" else 0


def _masked_entry(name: str, value: Any) -> Any:
    strength = _strength(name)
    if strength == 2 and not isinstance(value, str):
        return value if _is_ambiguous(name) else _all_masked(value)
    if strength == 1 and type(value) is int and _looks_like_token(str(value)):
        return MASK
    if not isinstance(value, str):
        return mask_values(value)
    secret = strength == 2 or (strength == 1 and _looks_like_token(value)) or _looks_random(value)
    return MASK if secret and value and not _PLACEHOLDER.match(value) else mask(value)


def _is_ambiguous(name: str) -> bool:
    return _WORDS.findall(name)[-1].lower() in _AMBIGUOUS


def _all_masked(value: Any) -> Any:
    """The shape of a value without its leaves; None and booleans tell nothing."""
    if isinstance(value, Mapping):
        return {key: _all_masked(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_all_masked(entry) for entry in value]
    return value if value is None or isinstance(value, bool) or value == "" else MASK


def _masked_user(found: re.Match[str]) -> str:
    """A URL whose user is a token: there is no password after it."""
    scheme, user = found[1], found[2]
    is_web = scheme.lower().endswith(("http://", "https://"))
    secret = user not in ("git", MASK) and (is_web or _looks_like_token(user))
    return f"{scheme}{MASK}" if secret else found[0]


def _masked_query(found: re.Match[str]) -> str:
    name = found["name"].lower().rpartition("-")[2]
    secret = is_secret_name(found["name"]) or name in _SIGNATURES
    return found["head"] + (MASK if secret else found["value"])


def _masked_collections(text: str) -> str:
    """Mask the literals of lists, tuples and mappings that are assigned to a password's name."""
    parts: list[str] = []
    position = 0
    for found in _COLLECTED.finditer(text):
        if found.start() < position or _strength(found["name"]) < 2:
            continue
        end = _closing_bracket(text, found.end())
        literals = _LITERAL.sub(_masked_literal, text[found.end() : end])
        parts += [text[position : found.end()], literals]
        position = end
    return "".join([*parts, text[position:]])


def _masked_literal(found: re.Match[str]) -> str:
    if found["is_key"]:
        return found[0]
    mark = found["mark"] or ""
    return f"{mark}{MASK}{mark}" if found[0] != mark * 2 else found[0]


def _closing_bracket(text: str, start: int) -> int:
    depth = 0
    for position in range(start, min(len(text), start + _LONGEST_COLLECTION)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position + 1
    return start


def _masked_assignment(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    head = name + found["quote"] + found["sign"]
    body = value.lstrip("rbfu") if value[-1:] in "\"'" else value
    quoted = body[:1] in "\"'" and len(body) > 1
    mark = body[: 3 if body[:3] in ('"""', "'''") else 1] if quoted else ""
    content = body[len(mark) : len(body) - len(mark)]
    if not content or content == MASK or _PLACEHOLDER.match(content):
        return found[0]
    strength = _strength(name)
    secret = _looks_random(content)
    if quoted:
        secret |= strength == 2 or (strength == 1 and _looks_like_token(content))
        secret |= name.lower() == "key" and bool(re.fullmatch(r"[0-9a-f]{32,}", content))
    elif strength == 2 or (strength == 1 and _looks_like_token(content)):
        secret |= _is_literal(name, found["sign"].strip(), content, found)
    if not secret:
        return found[0]
    prefix = value[: len(value) - len(body)]
    return f"{head}{prefix}{mark}{MASK}{mark}"


def _is_literal(name: str, sign: str, content: str, found: re.Match[str]) -> bool:
    """Whether an unquoted value is the value itself, as in YAML or a shell, and not Python code."""
    after = found.string[found.end() : found.end() + 1]
    if after in ("(", "[", "{"):
        return False
    if not re.fullmatch(r"[A-Za-z_][\w.]*", content):
        return True
    if name.isupper() or any(char.isdigit() for char in content):
        return "." not in content
    is_line = after in ("", "\n", "\r")
    return sign == ":" and is_line and content.islower() and len(content) >= 8


def _looks_like_token(content: str) -> bool:
    if any(char.isspace() for char in content):
        return False
    return len(content) >= 16 or (len(content) >= 6 and any(char.isdigit() for char in content))


def _looks_random(content: str) -> bool:
    if not _RANDOM.fullmatch(content) or re.match(r"sha\d+-", content):
        return False
    counts = Counter(content)
    bits = -sum(n / len(content) * math.log2(n / len(content)) for n in counts.values())
    return bits >= _RANDOM_BITS
