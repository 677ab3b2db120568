"""Secrets go, everything else stays."""

from __future__ import annotations

import random
import string
import time

import pytest

from danling.identity.redaction import (
    has_key,
    is_key_file,
    is_secret_name,
    mask,
    mask_argv,
    mask_values,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
KEYS = {
    "AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub": "ghp_" + LETTERS,
    "GitHub fine-grained": "github_pat_11ABCDEFG0" + LETTERS,
    "GitLab": "glpat-" + LETTERS[-20:],
    "Hugging Face": "hf_" + LETTERS.replace("0", "A")[:34],
    "OpenAI": "sk-proj-" + LETTERS,
    "Anthropic": "sk-ant-api03-" + LETTERS,
    "Slack": "xoxb-" + "123456789012-" + LETTERS[:24],
    "Google": "AIza" + LETTERS[:35],
    "Stripe": "sk_live_" + LETTERS[:24],
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + LETTERS,
    "JSON Web Token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefgh",
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("text", ["{}", "x = '{}'", "curl -H 'X: {}' http://x", "a {} b", "({})"])
def test_keys_with_a_form_of_their_own_are_masked_wherever_they_are(kind, text):
    masked = mask(text.format(KEYS[kind]))

    assert KEYS[kind][-8:] not in masked
    assert masked == text.format("***")
    assert has_key(text.format(KEYS[kind]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("password=hunter2", "password=***"),
        ('password = "x"', 'password = "***"'),
        ('password = """hunter2"""', 'password = """***"""'),
        ("DB_PASSWORD=correcthorse", "DB_PASSWORD=***"),
        ("db_password: correcthorsebattery", "db_password: ***"),
        ("token: abc123def456", "token: ***"),
        ("token: 's3cr3t'", "token: '***'"),
        ('"api_key": "short",', '"api_key": "***",'),
        ("config['apiKey'] = 'abc'", "config['apiKey'] = '***'"),
        ("secret_key=b'abc'  # why", "secret_key=b'***'  # why"),
        ("client_secret: 'it\\'s'", "client_secret: '***'"),
        ("wandb.login(key='" + "0123456789abcdef" * 2 + "')", "wandb.login(key='***')"),
        ("WANDB_API_KEY=" + "0123456789abcdef" * 2, "WANDB_API_KEY=***"),
        ("https://user:pa55@example.org/x", "https://user:***@example.org/x"),
        ("Authorization: Bearer " + LETTERS, "Authorization: Bearer ***"),
        ("https://hooks.slack.com/services/T0/B0/xyz", "https://hooks.slack.com/services/***"),
    ],
)
def test_what_is_assigned_to_a_secret_name_is_masked(text, expected):
    assert mask(text) == expected
    assert mask(expected) == expected


def test_assigned_values_that_look_random_are_masked():
    generator = random.Random(0)
    alphabet = string.ascii_letters + string.digits + "+/"
    values = ["".join(generator.choices(alphabet, k=40)) for _ in range(200)]
    missed = [value for value in values if value in mask(f'thing = "{value}"')]

    assert len(missed) <= 2, missed  # by chance without a digit


@pytest.mark.parametrize(
    "text",
    [
        'tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")',
        "num_tokens = 1024, max_tokens: 512",
        'pad_token = "<pad>"; tokenizer.eos_token = "<|endoftext|>"; mask_token="[MASK]"',
        "def f(token: str, password: Optional[str] = None, api_key: SecretStr): ...",
        "password = getpass.getpass()",
        'api_key = os.environ["API_KEY"]; token = os.getenv("TOKEN")',
        "login(token=token, password=self.password)",
        "    token: TokenType",
        'monitor="val/loss", key="val/accuracy"',
        'hash = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"',
        '"integrity": "sha512-v2kDEe57lecTulaDIuNTPy3Ry4gLGJ6Z1O3vE1krgXZNrsQ+LFTGHVxVjcXPs17L="',
        "path: experiments/digits-mlp-01234567-fedcba98-00112233/checkpoints/latest.pth",
        'uuid = "123e4567-e89b-12d3-a456-426614174000"',
        "commit 1f0c8a42deadbeef1f0c8a42deadbeef1f0c8a42",
        "url = 'https://github.com/a/b?x=1'",
        "token: ${HF_TOKEN}",
        "password: <your password>",
        "secret: null",
        "passes = 3; bypass = 1",
        "secret:\n  name: value",
        "skip-connections-in-kebab-case-of-many-words",
    ],
)
def test_ordinary_code_and_configuration_stay_as_they_are(text):
    assert mask(text) == text


def test_a_private_key_loses_its_lines_and_keeps_their_number():
    text = (
        "a\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\nAAAA\n-----END OPENSSH PRIVATE KEY-----\nb"
    )

    masked = mask(text)

    assert masked.splitlines()[2:4] == ["***", "***"]
    assert (masked.splitlines()[0], masked.splitlines()[5]) == ("a", "b")


def test_a_private_key_that_is_cut_off_is_masked_to_the_end():
    assert mask("-----BEGIN PRIVATE KEY-----\nMIIE\nabcd").endswith("-----\n***\n***")


@pytest.mark.parametrize(
    "text",
    [
        *("a." * 50_000, "=" * 50_000, "a:" * 50_000, "a://" * 30_000, "sk-" * 30_000),
        *("eyJ" * 30_000, "-eyJ" * 30_000, "x='" + "\\" * 50_000, "a " * 50_000 + "="),
        *("-----BEGIN PRIVATE KEY-----" * 4_000, "bearer " * 20_000, " " * 100_000),
        *("password" * 20_000, "'" * 50_000),
    ],
    ids=lambda text: text[:12].strip(),
)
def test_no_text_takes_long(text):
    begin = time.perf_counter()

    mask(text)

    assert time.perf_counter() - begin < 2


def test_options_of_a_command_line_lose_their_secret_values():
    argv = ["train.py", "--hub_token", "abc", "--password=x", "--lr", "0.1", "--token", "--flag"]

    masked = mask_argv([*argv, KEYS["GitHub"], "db=https://u:p@h/"])

    expected = ["train.py", "--hub_token", "***", "--password=***", "--lr", "0.1", "--token"]
    assert masked == [*expected, "--flag", "***", "db=https://u:***@h/"]


def test_nested_values_are_masked_by_their_keys_and_by_their_form():
    value = {"hub": {"token": "abc123"}, "list": [KEYS["AWS"], 1, None], "max_tokens": 5}

    masked = mask_values(value)

    assert masked == {"hub": {"token": "***"}, "list": ["***", 1, None], "max_tokens": 5}
    assert value["hub"] == {"token": "abc123"}


def test_secret_names_are_told_from_ordinary_ones():
    secret = ["password", "HF_TOKEN", "apiKey", "aws_secret_access_key", "CLIENT_SECRET", "token2"]
    ordinary = ["tokenizer", "num_tokens", "key", "keyword", "compass", "secretary", "lr", ""]

    assert [name for name in secret if not is_secret_name(name)] == []
    assert [name for name in ordinary if is_secret_name(name)] == []


def test_key_files_are_told_by_their_names():
    secret = [".env", "a/.env.local", "prod.env", "id_rsa", "a/id_ed25519.old", "x.PEM", "x.key"]
    ordinary = ["train.py", "environment.yaml", "env.py", "secrets.py", "keys.txt", "tokens.json"]

    assert [path for path in secret if not is_key_file(path)] == []
    assert [path for path in ordinary if is_key_file(path)] == []
