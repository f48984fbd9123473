import dataclasses
import re
import subprocess
import sys

import pytest

from ad_keras import export, train
from ad_keras.cli import flag, parse, run
from ad_keras.errors import Interrupted, RunError, UsageError
from ad_keras.runs.config import Config

PROGRAMS = {"train": train.main, "export": export.main}


@dataclasses.dataclass(frozen=True)
class Small:
    """Does little."""

    count: int = flag(3, "Numbers", "how many")
    share: float = flag(0.5, "Numbers", "what part")
    name: str | None = flag(None, "Texts", "of whom")
    kind: str = flag("plain", "Texts", "which kind", ("plain", "fancy"))
    parts: tuple[str, ...] = flag(("a", "b"), "Texts", "which parts")
    loud: bool = flag(False, "Texts", "shout")
    file: tuple[str, ...] = flag((), "Texts", "of what", repeatable=True)


def command_line(*arguments: str) -> Small:
    return parse(Small, ["program", *arguments], "python program.py")


def refusal(*arguments: str) -> str:
    with pytest.raises(UsageError) as error:
        command_line(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def test_values_arrive_with_their_types():
    parsed = command_line(
        "--count=5", "--share=1", "--name=x y", "--kind=fancy", "--parts=c, d", "--loud"
    )
    assert parsed == Small(5, 1.0, "x y", "fancy", ("c", "d"), True)
    assert isinstance(parsed.share, float)


def test_other_spellings_of_flags_mean_the_same():
    assert command_line("--count", "5", "-kind=fancy") == command_line("--count=5", "--kind=fancy")
    assert command_line("--loud=true", "--noloud") == Small()


def test_the_later_of_two_flags_wins():
    assert command_line("--count=5", "--count=6").count == 6


def test_a_repeatable_flag_collects_texts_that_may_hold_commas():
    assert command_line("--file=a,b", "--file=c").file == ("a,b", "c")
    assert command_line().file == ()


def test_flagfiles_compose_and_may_hold_comments(tmp_path):
    first, second = tmp_path / "first.flags", tmp_path / "second.flags"
    first.write_text("# What it does\n\n--count=5\n// more\n  --kind=fancy  \n--parts=c,d\n")
    second.write_text(f"--flagfile={first}\n--count=6\n")
    assert command_line(f"--flagfile={first}") == Small(5, kind="fancy", parts=("c", "d"))
    assert command_line(f"--flagfile={second}").count == 6
    assert command_line(f"--flagfile={second}", f"--flagfile={first}").count == 5
    assert command_line("--count=7", f"--flagfile={first}").count == 5
    assert command_line(f"--flagfile={first}", "--count=7").count == 7
    assert command_line("--flagfile", str(first)).count == 5


def test_one_command_line_leaves_nothing_behind_for_the_next():
    command_line("--count=5", "--loud")
    assert command_line() == Small()


def test_unknown_flag_is_refused_with_the_nearest_names():
    assert "--coutn is not a flag" in refusal("--coutn=3")
    assert "Did you mean --count?" in refusal("--coutn=3")
    assert "--help" in refusal("--zzz=3")


def test_unknown_flag_in_a_flagfile_is_refused(tmp_path):
    file = tmp_path / "some.flags"
    file.write_text("--part=a\n")
    assert "Did you mean --parts?" in refusal(f"--flagfile={file}")


def test_missing_flagfile_is_named(tmp_path):
    assert str(tmp_path / "none.flags") in refusal(f"--flagfile={tmp_path / 'none.flags'}")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--count=few", "--count=few: it must be a whole number"),
        ("--count=1.5", "--count=1.5: it must be a whole number"),
        ("--share=half", "--share=half: it must be a number"),
        ("--kind=odd", "plain|fancy"),
        ("--loud=perhaps", "--loud=perhaps"),
        ("--count", "--count"),
        ("stray", "'stray' is not a flag"),
        ("--flagfile", "flagfile"),
    ],
)
def test_bad_value_is_named(argument, expected):
    assert expected in refusal(argument)


@pytest.mark.parametrize("spelling", ["--help", "-h", "-help"])
def test_help_lists_the_flags_in_order_under_their_headings(spelling, capsys):
    with pytest.raises(SystemExit) as end:
        command_line("--count=bad", spelling)
    assert end.value.code == 0
    text = capsys.readouterr().out
    wanted = [
        "python program.py [flags]",
        "Does little.",
        "Numbers:",
        "--count=3",
        "how many",
        "--share=0.5",
        "Texts:",
        "--name=...",
        "--kind=plain",
        "which kind (plain, fancy)",
        "--parts=a,b",
        "--loud",
        "--flagfile=FILE",
    ]
    places = [text.index(part) for part in wanted]
    assert places == sorted(places)


def test_help_of_training_shows_its_flags_and_no_others(capsys):
    with pytest.raises(SystemExit) as end:
        parse(Config, ["train", "--help"], "python -m ad_keras.train")
    assert end.value.code == 0
    text = capsys.readouterr().out
    shown = re.findall(r"^ *--(\w+)", text, re.MULTILINE)
    assert shown == [*(field.name for field in dataclasses.fields(Config)), "flagfile"]
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 100


@pytest.mark.parametrize(("module", "status"), [("train", 0), ("export", 0), ("dream", 0)])
def test_help_does_not_load_tensorflow(module, status):
    program = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n"
        f"    runpy.run_module('ad_keras.{module}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[0] == f"python -m ad_keras.{module} [flags]"
    assert done.stdout.splitlines()[-1] == f"{status} False"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--epohcs=3"], "--epochs"),
        (["--epochs=0"], "--epochs=0"),
        (["--nohold_out=1"], "--nohold_out=1"),
        (["--dataset=svnh"], "svhn"),
        (["--dataset=svhn_cropped"], "svhn"),
        (["--dataset=fashion-mnist"], "fashion_mnist"),
        (["--dataset=/no/such/folder"], "/no/such/folder"),
        (["--dataset="], "--dataset="),
        (["3"], "'3' is not a flag"),
    ],
)
def test_bad_usage_of_training_ends_with_status_2_and_one_line(
    arguments, expected, tmp_path, monkeypatch, outcome
):
    monkeypatch.chdir(tmp_path)
    status, out, error = outcome(train.main, *arguments)
    assert status == 2
    assert out == ""
    assert re.fullmatch(r"error: .*\n", error)
    assert expected in error


def test_bad_usage_of_a_process_ends_with_status_2():
    done = subprocess.run(
        [sys.executable, "-m", "ad_keras.train", "--dataset=svnh"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: --dataset=svnh .*svhn.*\n", done.stderr)


@pytest.mark.parametrize(
    ("raised", "status", "expected"),
    [
        (UsageError("wrong."), 2, "error: wrong.\n"),
        (RunError("failed."), 1, "error: failed.\n"),
        (Interrupted("stopped.", 143), 143, "error: stopped.\n"),
        (KeyboardInterrupt(), 130, "error: interrupted.\n"),
        (
            OSError(28, "No space left on device", "/full/file"),
            1,
            "error: cannot read or write /full/file: No space left on device.\n",
        ),
    ],
)
def test_errors_become_one_line_and_a_status(raised, status, expected, outcome):
    def main(argv):
        raise raised

    assert outcome(main) == (status, "", expected)


def test_errors_of_the_program_itself_keep_their_trace(monkeypatch):
    def main(argv):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        run(main)
