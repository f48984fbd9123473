"""The README and the pages of docs/: their code runs, their commands parse, their links lead on."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ad_keras import PAD, cli, dream, export
from ad_keras.data import ImageSet
from ad_keras.evaluation.config import EvaluateConfig
from ad_keras.reproduction.config import ReproduceConfig
from ad_keras.runs.config import Config
from ad_keras.tuning.config import TuneConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    "ad_keras.train": Config,
    "ad_keras.tune": TuneConfig,
    "ad_keras.evaluate": EvaluateConfig,
    "ad_keras.reproduce": ReproduceConfig,
    "ad_keras.dream": dream.DreamConfig,
    "ad_keras.export": export.ExportConfig,
}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def commands(page: Path) -> list[list[str]]:
    """What follows `python` in each line of the page's shell blocks."""
    text = "".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)).replace("\\\n", "")
    lines = [shlex.split(part, comments=True) for part in re.split("\n|&&", text)]
    return [line[line.index("python") + 1 :] for line in lines if "python" in line]


@pytest.fixture(scope="module")
def workplace(finished, tmp_path_factory):
    """A folder in which the README's first command left its export."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(finished[1].export_folder, folder / "saved_models" / "synth_digits")
    return folder


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_code_runs(workplace, eagerly, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    splits = {("synth_digits", split): ImageSet(images, None, ()) for split in ("train", "test")}
    monkeypatch.setattr("ad_keras.data.load", lambda *asked: splits[asked])
    monkeypatch.chdir(workplace)
    names = {}
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            exec(code, names)
    assert isinstance(names["model"], PAD)
    assert int(names["model"].step.numpy()) == 2
    assert names["outputs"]["latent"].shape == names["latent"].shape == (64, 8)
    assert names["pictures"].dtype == tf.uint8
    assert names["pictures"].shape == images.shape


@each_page
def test_commands_parse(page, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "flags", tmp_path / "flags")
    searched = tmp_path / "runs" / "tune-synth_digits" / "tuned_synth_digits.flags"
    searched.parent.mkdir(parents=True)
    searched.touch()
    monkeypatch.chdir(tmp_path)
    for dash_m, *command in commands(page):
        if dash_m != "-m":  # a script, whose flags are its own or those of training
            script = (ROOT / dash_m).read_text()
            own = re.findall(r"^    (\w+): .* = flag\(", script, re.M)
            given = [flag.removeprefix("--").split("=")[0] for flag in command]
            assert set(given) <= set(own or Config.__dataclass_fields__)
        elif command[0] != "pytest" and "--help" not in command:
            cli.parse(COMMANDS[command[0]], command, "program")


@each_page
def test_relative_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_every_page_is_linked_from_the_readme_and_every_command_shown():
    readme = (ROOT / "README.md").read_text()
    missing = [page.name for page in PAGES[1:] if f"{page.relative_to(ROOT)})" not in readme]
    assert missing == []
    assert set(COMMANDS) <= {part for page in PAGES for line in commands(page) for part in line}
