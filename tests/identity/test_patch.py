"""The patch of a run rebuilds its code byte for byte, and holds none of its secrets."""

from __future__ import annotations

import os
import random
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from danling.identity import patch as patches
from danling.identity.patch import CodePatch
from tests.support.repositories import commit_all, files_of, git, make_repository, untracked_in

AWS = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789"
PRIVATE_KEY = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA1234\nabcdEFGH5678\n"
    "-----END RSA PRIVATE KEY-----\n"
)


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "repository")


def code_patch(folder: Path, **options: Any) -> CodePatch:
    """The patch, all untracked files included."""
    untracked = untracked_in(folder) if (folder / ".git").exists() else []
    return patches.code_patch(folder, untracked=untracked, **options)


def rebuild(repository: Path, patch: CodePatch, clone: Path) -> Path:
    """`git checkout <commit> && git apply code.patch` in a fresh clone."""
    git(clone.parent, "clone", "--quiet", "--recurse-submodules", str(repository), str(clone))
    git(clone, "checkout", "--quiet", git(repository, "rev-parse", "HEAD"))
    if patch.data:
        file = clone.parent / "code.patch"
        file.write_bytes(patch.data)
        git(clone, "apply", "--whitespace=nowarn", str(file))
    return clone


def test_the_patch_rebuilds_the_tree_byte_for_byte(repository, tmp_path):
    (repository / "deleted.py").write_text("deleted\n")
    (repository / "renamed.py").write_text("renamed\n" * 20)
    (repository / "image.png").write_bytes(random.Random(0).randbytes(5000))
    (repository / "gone.bin").write_bytes(random.Random(1).randbytes(5000))
    (repository / "becomes-link").write_text("a file\n")
    (repository / "tool.sh").write_text("#!/bin/sh\n")
    (repository / "latin.txt").write_bytes(b"caf\xe9\n")
    commit_all(repository)
    (repository / "deleted.py").unlink()
    (repository / "gone.bin").unlink()
    (repository / "renamed.py").rename(repository / "new name.py")
    image = random.Random(0).randbytes(5000)
    (repository / "image.png").write_bytes(image[:2500] + b"changed" + image[2500:])
    (repository / "becomes-link").unlink()
    (repository / "becomes-link").symlink_to("train.py")
    (repository / "tool.sh").chmod(0o755)
    (repository / "latin.txt").write_bytes(b"caf\xe9s\r\n\x0c\n")
    (repository / "train.py").write_text("lr = 0.2  # no newline at the end")
    (repository / "empty.py").write_text("")
    (repository / "untracked" / "deep").mkdir(parents=True)
    (repository / "untracked" / "deep" / 'ü "quoted".py').write_text(
        "diff --git a/x b/x\n@@ -1 @@\n"
    )
    (repository / "new.bin").write_bytes(random.Random(2).randbytes(3000))
    model = repository / "package" / "model.py"
    model.write_text(model.read_text().replace("layer_3 =", "first =").replace("layer_30 =", "l ="))

    patch = code_patch(repository)

    assert patch.left_out == ()
    assert patch.note is None
    assert files_of(rebuild(repository, patch, tmp_path / "clone")) == files_of(repository)


def test_a_clean_tree_has_an_empty_patch(repository):
    assert code_patch(repository) == CodePatch()


def test_before_the_first_commit_the_patch_is_everything(tmp_path):
    folder = tmp_path / "unborn"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "train.py").write_text("lr = 0.1\n")
    patch = code_patch(folder)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "code.patch").write_bytes(patch.data)

    git(other, "apply", str(tmp_path / "code.patch"))

    assert files_of(other) == files_of(folder)


def test_the_users_index_and_objects_are_untouched(repository):
    (repository / "train.py").write_text("lr = 0.2\n")
    (repository / "new.py").write_text("new\n")
    before = {path: path.stat().st_mtime_ns for path in (repository / ".git").rglob("*")}

    assert code_patch(repository).data

    assert {path: path.stat().st_mtime_ns for path in (repository / ".git").rglob("*")} == before


def test_configuration_of_diffs_does_not_change_the_patch(repository):
    (repository / "train.py").write_text("lr = 0.2\n")
    (repository / ".gitattributes").write_text("*.py diff=words\n")
    expected = code_patch(repository)
    for key, value in {
        "diff.noprefix": "true",
        "diff.mnemonicPrefix": "true",
        "diff.external": "false",
        "diff.words.textconv": "false",
        "diff.words.command": "false",
        "color.ui": "always",
        "core.abbrev": "4",
    }.items():
        git(repository, "config", key, value)

    assert code_patch(repository) == expected
    assert b"lr = 0.2" in expected.data


def test_changes_in_a_submodule_are_in_the_patch(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "file")
    make_repository(tmp_path / "library")
    git(repository, "submodule", "--quiet", "add", str(tmp_path / "library"), "deep/library")
    commit_all(repository)
    (repository / "deep" / "library" / "train.py").write_text("lr = 0.2\n")
    (repository / "deep" / "library" / "new.py").write_text("new\n")
    git(repository / "deep" / "library", "add", "new.py")
    (repository / "train.py").write_text("lr = 0.3\n")

    patch = code_patch(repository)

    assert files_of(rebuild(repository, patch, tmp_path / "clone")) == files_of(repository)


def test_large_files_are_named_with_size_and_digest(repository):
    (repository / "train.py").write_text("lr = 0.2\n" * 100)
    (repository / "data.bin").write_bytes(b"a" * 900)
    (repository / "small.py").write_text("small\n")

    patch = code_patch(repository, cap=500)

    digests = [sha256(b"a" * 900).hexdigest(), sha256(b"lr = 0.2\n" * 100).hexdigest()]
    assert patch.left_out == (
        f"data.bin 900 {digests[0]}: too large",
        f"train.py 900 {digests[1]}: too large",
    )
    assert b"small.py" in patch.data
    assert b"train.py" not in patch.data


def test_secrets_in_added_lines_are_masked_and_the_patch_still_applies(repository, tmp_path):
    (repository / "train.py").write_text(f'lr = 0.1\napi_key = "{GITHUB}"\nseed = 1\n')
    (repository / "new.py").write_text(f"{PRIVATE_KEY}aws = '{AWS}'\npassword = 'hunter2'\n")

    patch = code_patch(repository)
    clone = rebuild(repository, patch, tmp_path / "clone")

    assert secrets_in(patch.data) == []
    assert patch.left_out == ("new.py: secrets masked", "train.py: secrets masked")
    assert (clone / "train.py").read_text() == 'lr = 0.1\napi_key = "***"\nseed = 1\n'
    assert (clone / "new.py").read_text().splitlines()[-2:] == ["aws = '***'", "password = '***'"]


def secrets_in(data: bytes) -> list[str]:
    parts = [AWS, GITHUB, "hunter2", "MIIEpAIBAAKCAQEA1234", "abcdEFGH5678"]
    return [part for part in parts if part.encode() in data]


def test_a_secret_in_lines_that_git_must_find_drops_only_that_hunk(repository, tmp_path):
    lines = [f"line_{i} = {i}" for i in range(60)]
    lines[2] = "password = 'hunter2'"
    path = repository / "train.py"
    path.write_text("\n".join(lines) + "\n")
    commit_all(repository)
    changed = [*lines[:3], "inserted = 1", "inserted = 2", *lines[3:40], "late = 1", *lines[41:]]
    path.write_text("\n".join(changed) + "\n")

    patch = code_patch(repository)
    clone = rebuild(repository, patch, tmp_path / "clone")

    assert secrets_in(patch.data) == []
    assert patch.left_out == ("train.py: a change next to a secret",)
    assert re.findall(rb"(?m)^@@ .* @@", patch.data) == [b"@@ -38,7 +38,7 @@"]
    expected = [*lines[:40], "late = 1", *lines[41:]]
    assert (clone / "train.py").read_text().splitlines() == expected


def test_a_removed_secret_and_a_deleted_file_with_one_are_not_in_the_patch(repository, tmp_path):
    (repository / "one.py").write_text(f"token = '{GITHUB}'\n")
    (repository / "two.py").write_text(f"aws = '{AWS}'\n")
    commit_all(repository)
    (repository / "one.py").write_text("token = None\n")
    (repository / "two.py").unlink()
    (repository / "train.py").write_text("lr = 0.2\n")

    patch = code_patch(repository)
    clone = rebuild(repository, patch, tmp_path / "clone")

    assert secrets_in(patch.data) == []
    assert [line.split(":")[0] for line in patch.left_out] == ["one.py", "two.py"]
    assert (clone / "train.py").read_text() == "lr = 0.2\n"


def test_the_function_that_git_shows_beside_a_hunk_is_masked(repository):
    lines = ["password = 'hunter2'", *(f"    line {i}" for i in range(20))]
    (repository / "train.py").write_text("\n".join(lines) + "\n")
    commit_all(repository)
    (repository / "train.py").write_text("\n".join([*lines[:-1], "    changed"]) + "\n")

    patch = code_patch(repository)

    assert b"@@ password = '***'" in patch.data
    assert patch.left_out == ()


@pytest.mark.parametrize("name", [".env", "config/.env.local", "id_rsa", "server.pem", ".netrc"])
def test_key_files_are_never_in_the_patch_whatever_they_hold(repository, tmp_path, name):
    path = repository / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("NOT_OBVIOUSLY = secret-at-all\n")
    (repository / "train.py").write_text("lr = 0.2\n")

    patch = code_patch(repository)

    assert b"secret-at-all" not in patch.data
    assert patch.left_out == (f"{name}: a key file",)
    assert b"lr = 0.2" in patch.data


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8"])
def test_secrets_in_files_that_git_takes_for_binary_are_not_in_the_patch(repository, encoding):
    (repository / ".gitattributes").write_text("*.conf -diff\n")
    path = repository / "settings.conf"
    path.write_bytes("lr = 0.1\n".encode(encoding))
    commit_all(repository)
    path.write_bytes(f"lr = 0.1\nkey = {AWS}\n".encode(encoding))

    patch = code_patch(repository)

    assert patch == CodePatch(left_out=("settings.conf: a secret",))


def test_the_old_content_of_a_binary_file_is_not_in_the_patch(repository, tmp_path):
    (repository / "old.bin").write_bytes(b"\x00" + random.Random(0).randbytes(3000))
    commit_all(repository)
    (repository / "old.bin").unlink()

    patch = code_patch(repository)

    assert len(patch.data) < 300
    assert not (rebuild(repository, patch, tmp_path / "clone") / "old.bin").exists()


def test_outside_a_repository_there_is_no_patch_and_a_reason(tmp_path):
    patch = code_patch(tmp_path)

    assert (patch.data, patch.left_out) == (b"", ())
    assert patch.note == f"there is no git repository around {tmp_path}"


def test_a_patch_that_takes_too_long_is_left_out(repository):
    (repository / "train.py").write_text("lr = 0.2\n")

    assert code_patch(repository, timeout=0).note == "git did not answer in time"


def test_excluded_folders_are_not_in_the_patch(repository):
    shutil.copytree(repository / "package", repository / "experiments")
    commit_all(repository)
    (repository / "experiments" / "model.py").write_text("output\n")
    (repository / "train.py").write_text("lr = 0.2\n")

    patch = code_patch(repository, exclude=[repository / "experiments"])

    assert b"experiments" not in patch.data
    assert os.fsencode("train.py") in patch.data


def test_untracked_files_that_are_not_named_are_not_in_the_patch(repository):
    (repository / "train.py").write_text("lr = 0.2\n")
    (repository / "notes.py").write_text("notes\n")

    assert b"notes" not in patches.code_patch(repository).data
