import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from ad_keras.cli import parse
from ad_keras.data import DATASETS
from ad_keras.errors import UsageError
from ad_keras.runs.config import CONDITIONS, RUN_ONLY, Config

FLAGS = Path(__file__).parents[2] / "flags"

FIELDS = dataclasses.fields(Config)


def other_value(field: dataclasses.Field):
    """A value of a flag that is not its default."""
    lists = {
        "phases": ("wake", "rem"),
        "perturbation": ("crop", "occlusion"),
        "glimpse": ("crop", "colour"),
    }
    default, choices = field.default, field.metadata["choices"]
    if choices:
        return choices[-1] if choices[-1] != default else choices[0]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return 2 * default or 1
    if isinstance(default, float):
        return default / 2 or 0.25
    return lists.get(field.name, "some/where")


OTHER_VALUES = {field.name: other_value(field) for field in FIELDS}

# Impossible values by what is told to be allowed.
ALLOWED = {
    "at least 1": "latent_dim=0 base_filters=-4 tile_min=0 hippocampus_capacity=0 epochs=0 "
    "checkpoint_every=0 log_every=0",
    "at least 2": "views=1 batch_size=1",
    "0 or more": "train_examples=-1 kl_weight=-0.5 external_weight=-1.0 wake_noise_variance=-0.5 "
    "decorrelation_weight=-1.0 gradient_penalty_weight=-1.0 warmup_epochs=-0.5 clip_norm=-1.0 "
    "seed=-1 dream_every=-1 probe_every=-1",
    "above 0": "reconstruction_weight=0.0 internal_weight=-1.0 agreement_weight=0.0 "
    "temperature=0.0 encoder_learning_rate=0.0 generator_learning_rate=-1.0",
    "between 0 and 1": "occlusion_min=-0.1 occlusion_max=1.5 mix_recent=1.5 mix_memories=-0.5 "
    "colour_strength=1.5",
    "above 0 and at most 1": "crop_area=0.0",
    "at least 0 and below 1": "average_weights=1.0 beta_1=1.0 beta_2=-0.5",
    "no less than --tile_min (1)": "tile_max=0",
    "below --epochs (50)": "warmup_epochs=50.0",
    "32, 64 or 128": "image_size=48",
    "a number of 64 bits": f"seed={2**63}",
    "'wake'": "phases=nrem,rem phases=",
    "once each": "phases=wake,nrem,nrem",
    "'nrem' and 'rem'": "phases=wake,dream",
    "--phases": "recovery_weight=0.0",
    "at least one perturbation": "perturbation=",
    "There are occlusion, crop": "perturbation=dream",
    "Did you mean crop or": "glimpse=corp",
}
REFUSED = [
    *((*flag.split("="), allowed) for allowed, flags in ALLOWED.items() for flag in flags.split()),
    *((f.name, x, "finite") for f in FIELDS if type(f.default) is float for x in ("nan", "inf")),
    *((f.name, "none", "|".join(f.metadata["choices"])) for f in FIELDS if f.metadata["choices"]),
]

# What stands in the way of each other.
CONTRADICTIONS = [
    ("--occlusion_min=0.5 --occlusion_max=0.25", r"--occlusion_max=0.25 .*--occlusion_min \(0.5\)"),
    ("--tile_min=4 --tile_max=2", r"--tile_max=2 .*--tile_min \(4\)"),
    ("--external_weight=0 --gradient_penalty_weight=1", "=1.0 .* must be 0 with --external"),
    (
        "--hippocampus=episodic --hippocampus_capacity=63",
        r"--hippocampus_capacity=63 .* at least --batch_size \(64\)",
    ),
]


def command_line(*arguments: str) -> Config:
    return parse(Config, ["train", *arguments], "train")


def test_defaults_are_the_papers():
    config = command_line()
    assert config == Config()
    assert config.condition == "full"
    assert (config.dataset, config.image_size, config.latent_dim) == ("synth_digits", 32, 256)
    assert (config.base_filters, config.batch_size, config.epochs) == (64, 64, 50)
    assert (config.encoder_learning_rate, config.generator_learning_rate) == (2e-4, 2e-4)
    assert (config.beta_1, config.beta_2) == (0.5, 0.999)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_every_flag_can_be_set_on_the_command_line(name):
    value = OTHER_VALUES[name]
    assert getattr(Config(), name) != value
    text = ",".join(value) if isinstance(value, tuple) else value
    config = command_line(f"--{name}={text}")
    assert config == Config(**{name: value})
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED)
def test_impossible_value_is_refused_with_what_is_allowed(name, value, allowed):
    told = re.escape(f"--{name}={value}") + ".*" + re.escape(allowed)
    with pytest.raises(UsageError, match=rf"\A.*{told}.*\Z"):
        command_line(f"--{name}={value}")


@pytest.mark.parametrize(("flags", "told"), CONTRADICTIONS)
def test_contradictions_are_refused(flags, told):
    with pytest.raises(UsageError, match=rf"\A.*{told}.*\Z"):
        command_line(*flags.split())


def test_the_ends_of_a_range_may_be_reached():
    assert command_line("--occlusion_min=0.5", "--occlusion_max=0.5").occlusion_max == 0.5
    assert command_line(f"--seed={2**63 - 1}").seed == 2**63 - 1


@pytest.mark.parametrize("condition", CONDITIONS)
def test_condition_is_recognised_and_has_a_flagfile(condition):
    config = Config(**CONDITIONS[condition])
    assert config.condition == condition
    assert command_line(f"--flagfile={FLAGS / f'{condition}.flags'}") == config
    elsewhere = Config(**CONDITIONS[condition], dataset="svhn", epochs=3, seed=4, latent_dim=8)
    assert elsewhere.condition == condition


@pytest.mark.parametrize(
    "changes",
    [
        {"mix_recent": 0.75},
        {"phases": ("wake", "rem"), "external_weight": 0.0},
        {"mask_per": "image"},
        {"kl_weight": 0.5},
        {"tile_max": 4},
    ],
)
def test_what_the_paper_did_not_do_is_a_custom_condition(changes):
    assert Config(**changes).condition == "custom"


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({"agreement": "vicreg"}, {"agreement": "--glimpse"}),
        ({"agreement": "vicreg", "glimpse": ("crop",)}, {}),
        ({"temperature": 0.1}, {"temperature": "contrast"}),
        ({"temperature": 0.1, "glimpse": ("crop",)}, {}),
        ({"temperature": 0.1, "recovery": "contrast"}, {}),
        ({"views": 4, "agreement": "distance", "glimpse": ("crop",)}, {"views": "compares views"}),
        ({"tile_max": 4, "perturbation": ("flip",)}, {"tile_max": "occlusion"}),
        ({"tile_max": 4, "perturbation": ("flip",), "glimpse": ("occlusion",)}, {}),
        (
            {"crop_area": 0.1, "colour_strength": 0.1, "glimpse": ("crop",)},
            {"colour_strength": "colour"},
        ),
        (
            {"tile_max": 4, "recovery": "vicreg", "phases": ("wake", "rem")},
            {"tile_max": "occlusion", "recovery": "nrem"},
        ),
        (
            {"mix_recent": 0.7, "internal_weight": 2.0, "phases": ("wake", "nrem")},
            {"mix_recent": "REM", "internal_weight": "rem"},
        ),
        ({"mix_recent": 0.7, "nrem_memories": "mixed", "phases": ("wake", "nrem")}, {}),
        ({"hippocampus_capacity": 512}, {"hippocampus_capacity": "another --hippocampus"}),
        ({"hippocampus_capacity": 512, "hippocampus": "reservoir"}, {}),
        ({"adversary": "hinge", "phases": ("wake",)}, {}),
        (
            {"adversary": "hinge", "phases": ("wake",), "external_weight": 0.0},
            {"adversary": "--external_weight"},
        ),
        *(({**changes}, {}) for changes in CONDITIONS.values()),
    ],
)
def test_what_has_no_effect_is_told_with_what_it_needs(changes, idle):
    notes = Config(**changes).without_effect
    assert len(notes) == len(idle)
    for name, needed in idle.items():
        (note,) = (note for note in notes if note.startswith(f"--{name} "))
        assert needed in note


@pytest.mark.parametrize("dataset", DATASETS)
def test_data_set_has_a_flagfile_that_composes_with_every_condition(dataset):
    file = f"--flagfile={FLAGS / f'{dataset}.flags'}"
    alone = command_line(file)
    assert alone.dataset == dataset
    assert alone.condition == "full"
    for condition, changes in CONDITIONS.items():
        both = command_line(file, f"--flagfile={FLAGS / f'{condition}.flags'}")
        assert both == dataclasses.replace(alone, **changes)


def test_every_flagfile_says_how_to_use_it_and_can_be_parsed():
    files = sorted(FLAGS.glob("*.flags"))
    assert {file.stem for file in files} >= {*CONDITIONS, *DATASETS}
    for file in files:
        assert file.read_text().startswith("#"), file
        assert f"flags/{file.name}" in file.read_text(), file
        assert not command_line(f"--flagfile={file}").without_effect, file


@pytest.mark.parametrize("changes", [{}, OTHER_VALUES])
def test_json_keeps_every_flag(changes):
    config = Config(**changes)
    text = config.to_json()
    assert set(json.loads(text)) == set(OTHER_VALUES)
    assert Config.from_json(text) == config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        *((text, r"\S") for text in ("", "[]", "{}", "null", '["seed"]')),
        (
            '{"nrem_weight": 1, "rem_weight": 1}',
            "another version .*--nrem_weight and --rem_weight$",
        ),
    ],
)
def test_other_json_is_not_taken_for_flags(text, told):
    with pytest.raises(ValueError, match=told):
        Config.from_json(text)


def test_flags_that_came_later_have_their_defaults_in_an_earlier_run():
    assert Config.from_json('{"seed": 3, "phases": ["wake"]}') == Config(seed=3, phases=("wake",))


def test_home_folders_are_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for config in (
        Config(run_dir="~/a/run", saved_model_dir="~/an/export"),
        command_line("--run_dir=~/a/run", "--saved_model_dir", "~/an/export"),
    ):
        assert config.run_path == tmp_path / "a" / "run"
        assert config.export_path == tmp_path / "an" / "export"
    assert command_line("--data_dir=~/data").data_dir == str(tmp_path / "data")


def test_flags_that_a_continued_run_may_change_are_flags():
    assert set(OTHER_VALUES) >= RUN_ONLY


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "runs/synth_digits"),
        ({"dataset": "synth_digits/50k"}, "runs/synth_digits_50k"),
        ({"dataset": "svhn", "phases": ("wake", "rem")}, "runs/svhn-no_nrem"),
        ({"dataset": "svhn", "kl_weight": 2.0}, "runs/svhn-custom"),
        ({"dataset": "./some/pictures/"}, "runs/pictures"),
        ({"dataset": "/some/pictures", "mix_memories": 0.0}, "runs/pictures-rem_noise_only"),
        ({"dataset": "svhn", "run_dir": "out/7"}, "out/7"),
    ],
)
def test_run_is_named_after_data_and_condition(changes, expected, tmp_path, monkeypatch):
    (tmp_path / "synth_digits" / "50k").mkdir(parents=True)  # which is not the data set's name
    monkeypatch.chdir(tmp_path)
    config = Config(**changes)
    assert config.run_path == Path(expected)
    assert config.export_path == Path("saved_models") / Path(expected).name


@pytest.mark.parametrize("dataset", [".", "..", "./sub/..", "../photos/."])
def test_run_on_a_relative_folder_is_named_after_that_folder(dataset, tmp_path, monkeypatch):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    if dataset == "..":
        monkeypatch.chdir("sub")
    assert Config(dataset=dataset).run_path == Path("runs/photos")


def test_export_goes_where_it_is_told():
    assert Config(saved_model_dir="exports/best").export_path == Path("exports/best")
    assert Config(run_dir=os.curdir).export_path == Path("saved_models") / Path.cwd().name
