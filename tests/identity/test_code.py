"""What is code of a run and what is not, in git, without it and in a notebook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danling.identity.code import Code, read_code, uncounted_files
from danling.identity.ids import experiment_uuid
from tests.identity.test_git import fake_git
from tests.support.repositories import commit_all, git, make_repository, read_code_elsewhere


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "repository")


def test_a_commit_changes_the_id_and_ignored_files_do_not(repository):
    (repository / ".gitignore").write_text("*.log\n")
    before = experiment_uuid(read_code(repository))
    commit_all(repository)
    after = experiment_uuid(read_code(repository))
    (repository / "run.log").write_text("ignored")

    assert before != after
    assert experiment_uuid(read_code(repository)) == after


def test_output_in_project_root_does_not_change_the_id_even_through_a_link(repository, tmp_path):
    (tmp_path / "scratch").mkdir()
    (repository / "experiments").symlink_to(tmp_path / "scratch")

    code = read_code(repository, exclude=[repository / "experiments"])

    assert code.dirty is False


def test_a_project_root_around_the_script_hides_no_code(repository):
    package = repository / "package"
    (package / "inner").mkdir()
    (package / "model.py").write_text("layers = 3\n")

    assert read_code(repository, exclude=[repository]).dirty is True
    assert read_code(package, exclude=[package]).dirty is True
    assert read_code(package / "inner", exclude=[package]).dirty is True


@pytest.mark.parametrize("damage", ["garbage HEAD", "zeroed objects", "corrupt index", "no HEAD"])
def test_a_broken_repository_is_as_good_as_none(repository, damage):
    (repository / "train.py").write_text("lr = 0.2\n")
    if damage == "garbage HEAD":
        (repository / ".git" / "HEAD").write_bytes(b"\x00\xffgarbage")
    elif damage == "no HEAD":
        (repository / ".git" / "HEAD").unlink()
    elif damage == "corrupt index":
        (repository / ".git" / "index").write_bytes(b"garbage")
    else:
        for path in (repository / ".git" / "objects").rglob("??????*"):
            if path.is_file():
                path.chmod(0o644)
                path.write_bytes(bytes(path.stat().st_size))

    code = read_code(repository)

    assert (code.source, code.partial, code.dirty) == ("files", False, None)
    assert code.note


def test_a_bare_repository_has_no_working_tree(tmp_path):
    git(tmp_path, "init", "--quiet", "--bare", "bare.git")

    assert read_code(tmp_path / "bare.git").source == "files"


def test_outside_a_repository_the_script_and_its_imported_modules_are_the_code(tmp_path):
    first = run_script(make_project(tmp_path / "first"))
    copy = run_script(make_project(tmp_path / "second"))
    edited = make_project(tmp_path / "third")
    (edited / "package" / "model.py").write_text("layers = 3\n")
    unused = make_project(tmp_path / "fourth")
    (unused / "notes.py").write_text("never imported\n")

    names = [line.split(" ")[0] for line in first["extra"]]
    assert names == ["package/__init__.py", "package/model.py", "train.py"]
    assert (first["source"], first["commit"], first["dirty"]) == ("files", None, None)
    assert copy["experiment_id"] == first["experiment_id"]
    assert run_script(edited)["experiment_id"] != first["experiment_id"]
    assert run_script(unused)["experiment_id"] == first["experiment_id"]


def test_outside_a_repository_a_package_that_is_run_counts_from_its_root(tmp_path):
    project = make_project(tmp_path / "project")
    shutil.move(project / "train.py", project / "package" / "train.py")

    code = run_script(project, "-m", "package.train")

    names = [line.split(" ")[0] for line in code["extra"]]
    assert names == ["package/__init__.py", "package/model.py", "package/train.py"]


def make_project(folder: Path) -> Path:
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "model.py").write_text("layers = 2\n")
    (folder / "train.py").write_text(
        "import dataclasses, json, package.model\n"
        "from pathlib import Path\n"
        "from danling.identity import experiment_uuid, read_code\n"
        "code = read_code(Path(__file__).parent)\n"
        "answer = {'experiment_id': experiment_uuid(code).hex}\n"
        "print(json.dumps(dataclasses.asdict(code) | answer))\n"
    )
    return folder


def run_script(folder: Path, *command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *(command or ("train.py",))],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_code_that_was_piped_into_python_has_an_id_of_its_own(tmp_path):
    script = (make_project(tmp_path / "project") / "train.py").read_text()
    script = script.replace("Path(__file__).parent", "Path.cwd()")

    def pipe() -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-"], cwd=tmp_path / "project", input=script, text=True,
            check=True, capture_output=True, env=os.environ | {"PYTHONPATH": pythonpath()},
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    first, second = pipe(), pipe()

    assert (first["partial"], second["partial"]) == (True, True)
    assert first["experiment_id"] != second["experiment_id"]
    assert "what was typed or piped into Python is not known" in first["note"]


def pythonpath() -> str:
    return os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])


def test_the_text_of_a_command_is_the_code_of_the_main_program(tmp_path):
    make_project(tmp_path / "project")
    command = "{}; import runpy; runpy.run_path('train.py')"

    ids = [
        run_script(tmp_path / "project", "-W", "ignore", "-c", command.format(number))
        for number in (1, 1, 2)
    ]

    assert ids[0]["experiment_id"] == ids[1]["experiment_id"] != ids[2]["experiment_id"]
    assert [line.split(" ")[0] for line in ids[0]["extra"]][-1] == "<command>"


# What is code in a repository


SCRIPT = """
import dataclasses, json, os, sys
from pathlib import Path
{imports}
listed = []
sys.addaudithook(lambda event, args: event in ("os.listdir", "os.scandir") and listed.append(args))
from danling.identity import experiment_uuid, read_code
code = read_code(Path(__file__).parent)
answer = dict(dataclasses.asdict(code), experiment_id=experiment_uuid(code).hex)
json.dump(dict(answer, listed=[str(args[0]) for args in listed]), sys.stderr)
"""


@pytest.fixture
def project(repository: Path) -> Path:
    """A repository whose main script tells what it takes for its code."""
    (repository / "train.py").write_text(SCRIPT.format(imports="import package.model"))
    commit_all(repository)
    return repository


def told(project: Path, python: str = sys.executable, **options: Any) -> dict[str, Any]:
    done = subprocess.run(
        [python, "train.py"], cwd=project, check=True, stderr=subprocess.PIPE, text=True,
        **{"stdout": subprocess.DEVNULL, **options},
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stderr)
    return answer


def output_in_the_repository(project: Path) -> None:
    (project / "out.txt").write_text("epoch 1\n")


def script_beside(project: Path) -> None:
    (project / "plot.py").write_text("print('unrelated')\n")


def output_of_the_scheduler(project: Path) -> None:
    (project / "slurm-17.out").write_text("done\n")


def files_of_a_tracker(project: Path) -> None:
    (project / "dvclive" / "plots").mkdir(parents=True)
    (project / "dvclive" / "metrics.json").write_text("{}")
    (project / "dvclive" / "plots" / "loss.tsv").write_text("0\n")


def data(project: Path) -> None:
    with open(project / "data.bin", "wb") as file:
        file.truncate(2 << 30)


@pytest.mark.parametrize(
    "save",
    [output_in_the_repository, script_beside, output_of_the_scheduler, files_of_a_tracker, data],
)
def test_untracked_files_that_the_run_does_not_load_change_no_id(project: Path, save: Any):
    before = told(project)
    save(project)

    after = told(project)

    assert (before["dirty"], before["partial"]) == (False, False)
    assert after["experiment_id"] == before["experiment_id"]
    assert after["untracked"] == (["plot.py"] if save is script_beside else [])


def test_an_untracked_module_is_code_when_it_is_imported(project: Path):
    (project / "package" / "helper.py").write_text("depth = 1\n")
    unused = told(project)
    (project / "train.py").write_text(SCRIPT.format(imports="import package.helper"))
    commit_all(project)
    git(project, "rm", "--quiet", "--cached", "package/helper.py")
    git(project, "commit", "--quiet", "--message", "untrack")
    first = told(project)
    (project / "package" / "helper.py").write_text("depth = 2\n")
    second = told(project)

    assert (unused["dirty"], unused["untracked"]) == (False, ["package/helper.py"])
    assert [line.split(" ")[0] for line in first["extra"]] == ["package/helper.py"]
    assert first["experiment_id"] != second["experiment_id"]
    assert first["tree"] == second["tree"] == git(project, "rev-parse", "HEAD^{tree}")


def test_an_untracked_main_script_is_code(project: Path):
    git(project, "rm", "--quiet", "--cached", "train.py")
    git(project, "commit", "--quiet", "--message", "untrack")
    first = told(project)
    with open(project / "train.py", "a") as file:
        file.write("# changed\n")

    assert first["dirty"] is True
    assert told(project)["experiment_id"] != first["experiment_id"]


def test_a_virtual_environment_in_the_repository_is_neither_code_nor_looked_at(project: Path):
    before = told(project)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".v"], cwd=project, check=True)
    (library,) = (project / ".v" / "lib").glob("python3*/site-packages")
    (library / "danling_test_library.py").write_text("value = 1\n")
    (project / ".v" / "scripts.py").write_text("value = 1\n")
    installed = Path(pytest.__file__).parent.parent
    variables = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{installed}"}

    after = told(project, str(project / ".v" / "bin" / "python"), env=variables)

    assert after["experiment_id"] == before["experiment_id"]
    assert after["untracked"] == []
    assert [folder for folder in after["listed"] if "/.v" in folder] == []


def test_no_question_makes_git_walk_through_untracked_files(project: Path, tmp_path: Path):
    log = tmp_path / "log"
    path = fake_git(tmp_path / "bin", f'echo "$*" >> {log}\nexec "$real" "$@"')
    (project / "plot.py").write_text("print('unrelated')\n")

    code = told(project, env=os.environ | {"PATH": path})

    asked = log.read_text().splitlines()
    folders = [folder for folder in code["listed"] if folder.startswith(str(project))]
    assert len(asked) <= 8, asked  # three of them as GitPython is imported
    assert [question for question in asked if "untracked-files=no" in question]
    assert [q for q in asked if "--others" in q or "untracked-files=all" in q] == []
    assert sorted(folders) == [str(project), str(project / "package")]


def test_what_could_not_be_read_has_an_id_that_no_other_code_has(project: Path, tmp_path: Path):
    path = fake_git(
        tmp_path / "bin", 'case "$*" in *status*) sleep 60;; *) exec "$real" "$@";; esac'
    )

    first, second = (read_code_elsewhere(project, timeout=1.0, PATH=path) for _ in range(2))

    assert (first["partial"], second["partial"]) == (True, True)
    assert first["commit"] == second["commit"] == git(project, "rev-parse", "HEAD")
    assert first["experiment_id"] != second["experiment_id"]


def test_modules_that_are_imported_late_are_told_from_those_that_count(project: Path):
    code = read_code(project)
    late = [project / name for name in ("train.py", "package/model.py", "package/late.py")]
    late[-1].write_text("late = 1\n")

    assert uncounted_files(project, late, code, timeout=10) == ["package/late.py"]
    assert uncounted_files(project, late[:2], code, timeout=10) == []
    assert uncounted_files(project, late, Code(), timeout=10) == [
        "train.py", "package/model.py", "package/late.py",
    ]  # fmt: skip


def test_source_files_beside_the_modules_are_taken_up_to_a_limit(project: Path):
    for number in range(150):
        (project / f"script_{number:03}.py").write_text("x = 1\n")
    (project / "deep").mkdir()
    (project / "deep" / "unrelated.py").write_text("x = 1\n")

    code = told(project)

    assert code["untracked"] == [f"script_{number:03}.py" for number in range(100)]
    assert code["dirty"] is False


# Notebooks


CELLS = [
    "import json\nfrom pathlib import Path\nlr = 0.1",
    "from danling.identity import experiment_uuid, read_code\n"
    "code = read_code(Path.cwd())\nprint(json.dumps([experiment_uuid(code).hex, code.partial]))",
]


def run_notebook(folder: Path, cells: list[str]) -> list[Any]:
    """Run cells in a kernel of their own; returns the lines that they printed."""
    client = pytest.importorskip("jupyter_client")
    pytest.importorskip("ipykernel")
    manager, kernel = client.manager.start_new_kernel(
        kernel_name="python3", cwd=str(folder), env=os.environ | {"IPYTHONDIR": str(folder / ".i")}
    )
    printed: list[Any] = []

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            printed.extend(json.loads(line) for line in content["text"].splitlines())

    try:
        for cell in cells:
            kernel.execute_interactive(cell, output_hook=hear, timeout=60)
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
    return printed


@pytest.mark.filterwarnings("ignore")  # those of jupyter_client are its own
@pytest.mark.parametrize("versioned", [False, True])
def test_of_a_notebook_the_cells_that_ran_are_the_code(tmp_path: Path, versioned: bool):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    if versioned:
        git(folder, "init", "--quiet")
        (folder / "train.ipynb").write_text("{}")
        commit_all(folder)

    first, again = run_notebook(folder, [*CELLS, CELLS[1]])
    (folder / "train.ipynb").write_text('{"outputs": ["another"]}')
    (restarted,) = run_notebook(folder, CELLS)
    (other,) = run_notebook(folder, ["momentum = 0.9", *CELLS])

    assert first == again == restarted
    assert first[1] is False
    assert other != first


@pytest.mark.benchmark
@pytest.mark.parametrize("dirty", [False, True])
def test_the_identity_of_a_repository_of_300_files_takes_less_than_150_ms(tmp_path, dirty):
    folder = make_repository(tmp_path / "large")
    for index in range(300):
        (folder / f"module_{index}.py").write_text("line\n" * 300)
    commit_all(folder)
    if dirty:
        (folder / "module_0.py").write_text("edited\n")

    seconds = min(read_code_elsewhere(folder)["seconds"] for _ in range(3))

    assert seconds < 0.15
