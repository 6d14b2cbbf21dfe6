"""Which folder a run gets, and which earlier run a command goes on with."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hrsa_lightning.config import load_config
from hrsa_lightning.modules.checkpoints import SafetensorsCheckpointIO
from hrsa_lightning.runs.directory import Run, discard, take_run

_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


def _config(folder, *settings):
    return load_config("quickstart", [f"output_dir={folder}", *settings])


def _save(run, step):
    checkpoint = run.folder / "checkpoints" / f"step_{step:06d}"
    SafetensorsCheckpointIO().save_checkpoint({"global_step": step}, checkpoint)
    return checkpoint


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "now")
    runs = [take_run(_config(tmp_path)) for _ in range(3)]
    assert [run.folder.name for run in runs] == ["now", "now_2", "now_3"]
    assert {run[1:3] for run in runs} == {(None, False)}


def test_a_run_goes_on_where_it_has_something_to_go_on_with(tmp_path):
    config = _config(tmp_path)
    run = take_run(config)
    checkpoint = _save(run, 7)
    assert take_run(config) == Run(run.folder, checkpoint)
    later = _config(tmp_path, "trainer.max_time=00:00:01:00")
    assert take_run(later) == Run(run.folder, checkpoint)
    for other in (_config(tmp_path, "seed=5"), _config(tmp_path, "resume=false")):
        assert take_run(other).folder != run.folder


def test_a_run_is_finished_when_its_report_is_there(tmp_path):
    config = _config(tmp_path)
    run = take_run(config)
    (run.folder / "of_another_name.jsonl").touch()
    (run.folder / "summary.json").write_text("{}")
    assert take_run(config) == Run(run.folder, None, trained=True)
    (run.folder / "report").mkdir()
    (run.folder / "report" / "report.html").touch()
    assert take_run(config).folder != run.folder


def test_a_recipe_that_is_half_written_is_none(tmp_path):
    config = _config(tmp_path)
    run = take_run(config)
    _save(run, 7)
    recipe = run.folder / "config.yaml"
    recipe.write_text(recipe.read_text()[:100])
    assert take_run(config).folder != run.folder


def test_a_recipe_that_cannot_be_read_stops_no_other_run(tmp_path):
    config = _config(tmp_path)
    run = take_run(config)
    checkpoint = _save(run, 7)
    other = run.folder.with_name("3000-01-01_00-00-00")
    shutil.copytree(run.folder, other)
    (other / "config.yaml").write_bytes(b"\xff\xfe\x00")
    assert take_run(config) == Run(run.folder, checkpoint)


def test_a_damaged_checkpoint_is_named(tmp_path, capsys):
    config = _config(tmp_path)
    run = take_run(config)
    older, newer = _save(run, 7), _save(run, 8)
    (newer / "state.safetensors").write_bytes(b"")
    assert take_run(config) == Run(run.folder, older)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{newer} is damaged (")


@pytest.mark.skipif(sys.platform == "win32", reason="no record locks")
def test_a_folder_in_use_is_left_to_its_process(tmp_path, capsys):
    config = _config(tmp_path)
    run = Run(Path(tmp_path, "quickstart", "2000-01-01_00-00-00"))
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text((take_run(config).folder / "config.yaml").read_text())
    checkpoint = _save(run, 7)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(run.folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        assert take_run(config).folder != run.folder
        assert f"{run.folder} is in use by another process" in capsys.readouterr().out
        holder.kill()
    assert take_run(config) == Run(run.folder, checkpoint)


def test_only_a_new_run_is_discarded(tmp_path):
    config = _config(tmp_path / "deep" / "runs")
    run, other = take_run(config), take_run(config)
    checkpoint = _save(run, 7)
    discard(Run(run.folder, checkpoint))
    assert run.folder.is_dir()
    discard(run)
    assert not run.folder.exists()
    assert [*tmp_path.rglob("*.yaml")] == [other.folder / "config.yaml"]
    discard(other)
    assert run.folder.parent.is_dir(), "made for the first"
    discard(take_run(_config(tmp_path / "new" / "runs")))
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
