import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ad_keras import __main__ as commands
from ad_keras import train
from ad_keras.cli import flag, parse, quiet_start, run
from ad_keras.errors import Interrupted, RunError, UsageError
from ad_keras.runs.config import Config

ROOT = Path(__file__).parents[1]


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


def misuse(*arguments: str) -> str:
    with pytest.raises(UsageError) as error:
        command_line(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def python(*words: str, cwd=None, **environment: str) -> subprocess.CompletedProcess:
    pipes = {"capture_output": True, "text": True, "timeout": 60}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=os.environ | environment, **pipes)


def test_values_arrive_with_their_types():
    parsed = command_line(
        "--count=5", "--share=1", "--name=x y", "--kind=fancy", "--parts=c, d", "--loud"
    )
    assert parsed == Small(5, 1.0, "x y", "fancy", ("c", "d"), True)
    assert isinstance(parsed.share, float)


def test_other_spellings_of_flags_mean_the_same():
    assert command_line("--count", "5", "-kind=fancy") == command_line("--count=5", "--kind=fancy")
    assert command_line("--loud=true", "--noloud") == Small()  # the later wins


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


def test_unknown_flag_is_refused_with_the_nearest_names(tmp_path):
    assert "--coutn is not a flag of this program. Did you mean --count?" in misuse("--coutn=3")
    assert "--help" in misuse("--zzz=3")
    file = tmp_path / "some.flags"
    file.write_text("--part=a\n")
    assert "Did you mean --parts?" in misuse(f"--flagfile={file}")


@pytest.mark.parametrize("name", ["quick", "quick.flags", "flags/quick.flags"])
def test_a_flagfile_of_the_package_is_found_where_there_is_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parsed = parse(Config, ["train", f"--flagfile={name}"], "train")
    assert (parsed.dataset, parsed.base_filters) == ("synth_digits", 32)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("--flagfile=no_rem\n--base_filters=7\n")
    parsed = parse(Config, ["train", f"--flagfile={name}"], "train")
    assert (parsed.condition, parsed.base_filters) == ("no_rem", 7)


@pytest.mark.parametrize("name", ["none.flags", "elsewhere/quick.flags", "flags", "~/quick", ""])
def test_missing_flagfile_is_named_beside_those_of_the_package(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = misuse(f"--flagfile={name}")
    assert f"--flagfile={name} is not a file" in message
    assert "no_rem, nrem_mixed, perturbations, quick, rem_before_nrem" in message


def test_a_flagfile_that_names_itself_is_refused(tmp_path):
    first, second = tmp_path / "first.flags", tmp_path / "second.flags"
    first.write_text(f"--flagfile={second}\n")
    second.write_text(f"--flagfile={first}\n")
    assert f"{first} names itself" in misuse(f"--flagfile={first}")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which pip installed the package alone."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # a copy, because building leaves files behind
    for name in ("ad_keras", "flags"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(file, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
    target = folder / "target"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, f"--target={target}", str(source)],
        check=True,
        timeout=120,
    )
    return target


@pytest.mark.parametrize(
    "program", ["bin/ad-keras train", "-m ad_keras train", "-m ad_keras.train"]
)
def test_installed_commands_find_the_installed_flagfiles(program, installed, tmp_path):
    words = program.replace("bin", f"{installed}/bin").split()
    flagfiles = ["--flagfile=no_rem", "--flagfile=flags/wake_only.flags"]
    done = python(*words, *flagfiles, "--dataset=none", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 2
    assert re.fullmatch(r"error: --dataset=none .*\n", done.stderr)


def test_the_installed_package_is_whole(installed):
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "ad_keras").rglob("*.*")}
    package = {name for name in package if "__pycache__" not in name}
    package |= {f"ad_keras/flags/{path.name}" for path in (ROOT / "flags").iterdir()}
    shipped = (installed / "ad_keras").rglob("*.*")
    assert {str(path.relative_to(installed)) for path in shipped} == package
    assert "ad_keras/py.typed" in package


def test_commands_are_listed(success):
    out = success(commands.run_command)
    modules = {
        path.stem for path in (ROOT / "ad_keras").glob("*.py") if "run(main)" in path.read_text()
    }
    assert set(re.findall(r"^  (\w+)  +\w+", out, re.MULTILINE)) == modules
    assert success(commands.run_command, "--help") == out


def test_a_command_is_given_its_flags(outcome):
    assert outcome(commands.run_command, "train", "--epochs=0") == outcome(train.main, "--epochs=0")


@pytest.mark.parametrize(("name", "advice"), [("trian", "mean train?"), ("zzz", "are train, eval")])
def test_an_unknown_command_is_refused_with_the_nearest(name, advice, refusal):
    error = refusal(commands.run_command, name, "--epochs=0")
    assert re.fullmatch(rf"error: '{name}' is not a command. .*{re.escape(advice)}.*\n", error)


@pytest.mark.parametrize("words", ["-m ad_keras.train", "-m ad_keras evaluate"])
def test_commands_refuse_another_backend(words):
    done = python(*words.split(), "--help", KERAS_BACKEND="torch")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: KERAS_BACKEND=torch is not .*TensorFlow.*\n", done.stderr)


def test_import_refuses_another_backend():
    done = python("-c", "import ad_keras", KERAS_BACKEND="jax")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: KERAS_BACKEND=jax is not possible")
    assert python("-c", "import ad_keras", KERAS_BACKEND="").returncode == 0
    assert python("-c", "import ad_keras", KERAS_BACKEND="tensorflow").returncode == 0


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
    ],
)
def test_bad_value_is_named(argument, expected):
    assert expected in misuse(argument)


@pytest.mark.parametrize("spelling", ["--help", "-h", "-help"])
def test_help_lists_the_flags_in_order_under_their_headings(spelling, capsys):
    with pytest.raises(SystemExit) as end:
        command_line("--count=bad", spelling)
    assert end.value.code == 0
    text = capsys.readouterr().out
    wanted = [
        *("python program.py [flags]", "Does little.", "Numbers:", "--count=3", "how many"),
        *("--share=0.5", "Texts:", "--name=...", "--kind=plain", "which kind (plain, fancy)"),
        *("--parts=a,b", "--loud", "--flagfile=FILE"),
    ]
    places = [text.index(part) for part in wanted]
    assert places == sorted(places)


def test_help_of_training_shows_its_flags_and_no_others(success):
    text = success(train.main, "--help")
    shown = re.findall(r"^ *--(\w+)", text, re.MULTILINE)
    assert shown == [*(field.name for field in dataclasses.fields(Config)), "flagfile"]
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 100


@pytest.mark.parametrize("module", ["train", "export", "dream"])
def test_help_does_not_load_tensorflow(module):
    done = python("-X", "importtime", "-m", f"ad_keras.{module}", "--help")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"python -m ad_keras.{module} [flags]"
    imports = [line.split() for line in done.stderr.splitlines()]
    assert len(imports) > 50
    assert all(words[:2] == ["import", "time:"] for words in imports)
    assert "tensorflow" not in {words[-1] for words in imports}


REFUSALS = {
    "train": [
        ("--epohcs=3", "--epochs"),
        ("--nohold_out=1", "--nohold_out=1"),
        ("--dataset=svnh", "Did you mean svhn?"),
        ("--dataset=fashion-mnist", "Did you mean fashion_mnist"),
        ("--dataset=/no/such/folder", "--dataset=/no/such/folder is neither"),
        ("--dataset=", "--dataset= is neither"),
        ("3", "'3' is not a flag"),
    ],
    "evaluate": [
        ("", "name one of --run_dir"),
        ("--run_dir=a --export=b", "name one of --run_dir"),
        ("--run_dir=nowhere", "nowhere is not the folder of a run"),
        ("--export=nowhere", "--export=nowhere is not an existing folder"),
        ("--run_dir=a --metrics=fdi", "Did you mean fid"),
        ("--run_dir=a --metrics=probe,kmn", "Did you mean knn"),
        ("--run_dir=a --metrics=", "--metrics is empty"),
        ("--run_dir=a --dataset=cifr10", "Did you mean cifar10"),
        ("--run_dir=a --num_dreams=0", "--num_dreams=0 is not possible"),
        ("--run_dir=a --epoch=-1", "--epoch=-1 is not possible"),
        (f"--run_dir=a --seed={2**32}", "must be below 2**32"),
        ("--export=a --epoch=1", "an export has only one"),
        ("--run_dir=a --inception_weights=a", "must be a file, with --features=inception"),
        ("--run_dir=a --features=resnet", "--features=resnet: value should be one of"),
    ],
    "dream": [
        ("", "name one of --run_dir"),
        ("--run_dir=a --export=b", "name one of --run_dir"),
        ("--run_dir=nowhere", "nowhere is not the folder of a run"),
        ("--run_dir=a --num_images=3", "--num_images=3 is not possible: it must be at least 4"),
        ("--run_dir=a --seed=-1", "--seed=-1 is not possible"),
        (f"--run_dir=a --seed={2**63}", "must be 0 or more, and a number of 64 bits"),
        ("--run_dir=a --dataset=cifr10", "Did you mean cifar10"),
    ],
    "export": [
        ("", "--run_dir is missing: name the folder of a run."),
        ("--run_dir=nowhere", "nowhere is not the folder of a run"),
        ("--run_dri=a", "Did you mean --run_dir?"),
    ],
    "reproduce": [
        ("--seeds=one", "--seeds=one is not possible"),
        ("--seeds=1,01", "--seeds=1,1 names one of them twice"),
        ("--seeds=", "--seeds is empty"),
        ("--conditions=full,no_rme", "=no_rme is unknown. Did you mean no_rem"),
        ("--conditions=full,full", "--conditions=full,full names one of them twice"),
        ("--conditions=", "--conditions is empty"),
        ("--num_dreams=0", "--num_dreams=0 is not possible"),
        ("--epochs=0", "--epochs=0"),
        ("--dataset=cifr10", "Did you mean cifar10"),
        ("--results_dir=a --dry_run", "leave one of them out"),
        ("--features=inception --inception_weights=a.h5", "must be a file"),
    ],
}


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [(command, *refused) for command, table in REFUSALS.items() for refused in table],
)
def test_bad_usage_is_one_line_that_says_what_to_do(
    command, flags, message, tmp_path, monkeypatch, refusal
):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(f"ad_keras.{command}").main
    assert message in refusal(main, *flags.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "status", "expected"),
    [
        (UsageError("wrong."), 2, "error: wrong.\n"),
        (RunError("failed."), 1, "error: failed.\n"),
        (Interrupted("stopped.", 143), 143, "error: stopped.\n"),
        (KeyboardInterrupt(), 130, "error: interrupted.\n"),
        (OSError(28, "Full", "/file"), 1, "error: cannot read or write /file: Full.\n"),
        (MemoryError("No room for 9 GiB"), 1, "error: not enough memory: No room for 9 GiB.\n"),
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


@pytest.mark.parametrize(("setting", "expected"), [(None, "1"), ("0", "0")])
def test_commands_turn_onednn_on_unless_the_user_turned_it_off(setting, expected, monkeypatch):
    if setting is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    else:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", setting)
    with quiet_start():
        pass
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == expected
