"""A week of experiments: killed, failed and edited runs, and the questions that come after."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import danling as dl
from danling.cli.main import main
from tests.support.week import copy_week, make_week


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_week(tmp_path_factory.mktemp("made") / "week")


@pytest.fixture
def week(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = copy_week(made, tmp_path / "week")
    monkeypatch.chdir(folder)
    return folder


def data_of(words: list[str], capfd: pytest.CaptureFixture[str]):
    capfd.readouterr()
    main([*words, "--json"])
    return json.loads(capfd.readouterr().out)["data"]


def bytes_of_checkpoints(week: Path) -> int:
    files = [path.stat() for path in week.glob("experiments/*/checkpoints/*.pth")]
    return sum({status.st_ino: status.st_size for status in files}.values())


def test_says_how_each_run_stands_and_why(week: Path):
    runs = dl.runs()

    assert sorted(run.status for run in runs) == ["failed"] + ["finished"] * 9 + ["killed"] * 2
    failed = runs.filter(status="failed")[0]
    assert failed.reason is not None
    assert failed.reason.startswith("CheckpointError: ")
    assert "No space left on device" in failed.reason
    assert sum(run.dirty for run in runs) == 6
    assert "torch" not in runs[0].settings


def test_summarises_over_seeds_what_ended_well(week: Path):
    groups = dl.runs().over_seeds()

    assert len(groups) == 6
    assert sorted(len(group.runs) for group in groups) == [1, 1, 1, 2, 2, 2]
    for group in groups:
        values = [run.metric("val.accuracy") or 0.0 for run in group.runs]
        summary = group.summary("val.accuracy")
        assert summary is not None
        assert summary.mean == pytest.approx(sum(values) / len(values))


def test_the_best_is_the_one_with_the_highest_score(week: Path, capsys: pytest.CaptureFixture[str]):
    scores = {run.path: run.score or 0.0 for run in dl.runs()}

    assert main(["best", "--path"]) == 0

    path = Path(capsys.readouterr().out.strip())
    assert path.is_file()
    assert scores[path.parents[1]] == max(scores.values())


def test_tells_what_differs_with_the_uncommitted_code(
    week: Path, capsys: pytest.CaptureFixture[str]
):
    runs = dl.runs()
    before = runs.filter("not dirty and optim.lr == 0.1 and seed == 0")[0]
    after = runs.filter("dirty and optim.lr == 0.1 and seed == 0")[0]

    difference = before.diff(after)

    assert [change.key for change in difference.config] == ["optim.weight_decay"]
    assert [file[0] for file in difference.code.files] == ["network.py", "train.py"]
    assert "+model = nn.Sequential(nn.Linear(2, 32)" in difference.code.patch
    assert len(str(difference).splitlines()) == 5
    assert main(["diff", before.id, after.id, "--exit-code"]) == 1


def test_killed_runs_go_on_with_their_own_code(week: Path, capfd: pytest.CaptureFixture[str]):
    killed = dl.runs().filter(status="killed")

    assert main(["resume", "@killed", "--exec"]) == 0

    assert killed
    for before in killed:
        run = dl.runs()[before.id]
        assert run.status == "finished"
        assert len(run.launches) == 2
        assert run.results[-1]["epoch"] == 4
        assert "no line changed" in run.launches[1].get("code_change", "no line changed")
    assert main(["verify", *(run.id for run in killed)]) == 0


def test_goes_on_with_its_own_untracked_module_where_that_was_edited(
    week: Path, capfd: pytest.CaptureFixture[str]
):
    run = dl.runs().filter("dirty and status == 'killed'")[0]
    (before,) = data_of(["resume", run.id], capfd)
    (week / "network.py").write_text("raise SystemExit('edited since')\n")

    (after,) = data_of(["resume", run.id], capfd)

    assert before["argv"][1] == "train.py"
    script = Path(after["argv"][1])
    assert script.is_relative_to(week / "experiments" / ".danling" / "code")
    assert "nn.Tanh" in script.with_name("network.py").read_text()
    assert main(["resume", run.id, "--exec"]) == 0
    assert dl.runs()[run.id].status == "finished"


def test_verification_looks_at_untracked_modules_in_the_patch(
    week: Path, capfd: pytest.CaptureFixture[str]
):
    run = dl.runs().filter("dirty and status == 'finished'")[0]
    patch = run.path / "metadata" / "code.patch"
    patch.write_text(patch.read_text().replace("nn.Tanh", "nn.GELU"))

    assert main(["verify", run.id]) == 1

    assert "code.patch does not give the recorded network.py" in capfd.readouterr().out


def test_runs_again_in_a_fresh_clone_with_the_same_weights(
    week: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    original = dl.runs().filter("dirty and status == 'finished'")[0]
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(week), str(clone)], check=True)
    (week / "experiments").rename(clone / "experiments")
    monkeypatch.chdir(clone)

    assert main(["rerun", original.uuid[:8], "--exec"]) == 0

    again = dl.runs()["@1"]
    assert again.uuid != original.uuid
    assert again.run_id == original.run_id
    for name in ("best", "latest"):
        weights = [
            dl.read_checkpoint(path)["model"]
            for path in (dl.runs()[original.id].checkpoint(name), again.checkpoint(name))
        ]
        assert weights[0].keys() == weights[1].keys()
        assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


def test_verification_names_what_was_changed(week: Path, capfd: pytest.CaptureFixture[str]):
    run = dl.runs().filter(status="finished")[0]
    assert main(["verify", run.id]) == 0
    checkpoint = run.checkpoint("best")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    record = run.path / "run.json"
    record.write_text(record.read_text().replace('"lr": ', '"lr": 7', 1))

    assert main(["verify", run.id]) == 1

    bad = [line for line in capfd.readouterr().out.splitlines() if "BAD" in line]
    assert any("run_uuid is not that of the recorded code and configuration" in b for b in bad)
    assert any("best.pth is damaged: its content has another SHA-256" in b for b in bad)


def test_collection_frees_what_it_says_and_everything_still_verifies(
    week: Path, capfd: pytest.CaptureFixture[str]
):
    main(["tag", "@1", "paper"])
    words = ["gc", "--checkpoints", "--keep-best", "1"]
    told = data_of(words, capfd)
    before = bytes_of_checkpoints(week)

    done = data_of([*words, "--yes"], capfd)

    freed = before - bytes_of_checkpoints(week)
    assert told["bytes"] == done["bytes"] == freed > 0
    assert dl.runs()["@1"].id not in {row["id"] for row in done["removed"]}
    runs = dl.runs()
    assert len(runs) > 1
    assert all((run.path / "checkpoints" / "best.pth").is_file() for run in runs)
    assert main(["verify", "@all"]) == 0


def test_removed_runs_come_back(week: Path, capfd: pytest.CaptureFixture[str]):
    failed = dl.runs()["@failed"]

    assert main(["rm", "@failed"]) == 0
    assert len(dl.runs()) == 12
    assert main(["rm", "@failed", "--yes"]) == 0
    assert len(dl.runs()) == 11
    assert main(["restore", failed.uuid[:8]]) == 0
    assert dl.runs()[failed.id].path == failed.path


@pytest.mark.parametrize("word", ["@best", "@1"])
def test_the_best_and_the_tagged_are_not_removed(
    week: Path, word: str, capfd: pytest.CaptureFixture[str]
):
    main(["tag", "@1", "paper"])

    assert main(["rm", word, "--yes"]) == 1

    assert len(dl.runs()) == 12


def test_a_report_is_one_small_file(week: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", "@all", "-n", "10"]) == 0

    page = Path("report.html").read_text()
    assert len(page) < 1_000_000
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") >= 2
    assert page.count("<details>") == 10


def test_reading_runs_loads_no_torch(week: Path):
    program = (
        "import sys; from danling.cli.main import main; main(['ls', '-F', 'val.accuracy > 0']);"
        " main(['seeds']); main(['export', '--format', 'latex', '--seeds']);"
        " sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
