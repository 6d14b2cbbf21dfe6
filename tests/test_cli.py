"""What the parsers of several commands have in common."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from hrsa_lightning import __version__
from hrsa_lightning.cli import HelpFormatter, add_encoder_options, main, options_of
from hrsa_lightning.io.resources import resource_files
from hrsa_lightning.runs.encoder import EncoderOptions


@pytest.fixture
def parser():
    made = argparse.ArgumentParser("command", formatter_class=HelpFormatter)
    add_encoder_options(made)
    return made


def test_options_say_how_models_run(parser):
    assert options_of(EncoderOptions, parser.parse_args([])) == EncoderOptions()
    text = "--max-length 9 --batch-size 2 --dtype bfloat16 --device cuda:1"
    assert options_of(EncoderOptions, parser.parse_args(text.split())) == EncoderOptions(
        max_length=9, batch_size=2, dtype="bfloat16", device="cuda:1"
    )
    assert all(len(line) <= 100 for line in parser.format_help().splitlines())


@pytest.mark.parametrize("option", ["--max-length", "--batch-size"])
@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many", ""])
def test_lengths_and_sizes_are_whole_and_positive(option, value, parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([f"{option}={value}"])
    assert caught.value.code == 2
    assert f"expected a whole number from 1 on, got {value!r}" in capsys.readouterr().err


PRINT = f"{sys.executable} -m hrsa_lightning.train --print-config seed=1 recipe=quickstart"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (f"{PRINT} | head -1", "name: quickstart"),
        (f"{PRINT} | true", ""),
        (f"{PRINT} > /dev/full", ""),
        (f"{PRINT} >&- 2>&-", ""),
        (
            f"PYTHONIOENCODING=ascii {PRINT} description=größe | grep desc",
            "description: gr\\xf6\\xdfe",
        ),
    ],
)
def test_a_command_does_not_depend_on_who_reads_it(command, shown):
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == shown


def test_help_names_the_way_in_which_a_command_was_started():
    for start, usage in {
        "-m hrsa_lightning": "python -m hrsa_lightning train",
        "-m hrsa_lightning.train": "python -m hrsa_lightning.train",
        f"{Path(sys.executable).with_name('hrsa')}": "hrsa train",
    }.items():
        name = [] if start.endswith(".train") else ["train"]
        command = [sys.executable, *start.split(), *name, "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        assert shown.startswith(f"usage: {usage} recipe=NAME")
        for listed in (*resource_files("recipes"), *resource_files("callbacks")):
            assert f"\n  {listed} " in shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hrsa_lightning {__version__}\n"
