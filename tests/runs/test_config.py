import dataclasses
import json
import os
from pathlib import Path

import pytest

from ad_keras.cli import parse
from ad_keras.data import DATASETS
from ad_keras.errors import UsageError
from ad_keras.runs.config import CONDITIONS, RUN_ONLY, Config

FLAGS = Path(__file__).parents[2] / "flags"

OTHER_VALUES = {
    "dataset": "svhn",
    "data_dir": "somewhere",
    "strategy": "one_device",
    "deterministic": True,
    "image_size": 64,
    "train_examples": 100,
    "network": "residual",
    "latent_dim": 16,
    "base_filters": 8,
    "phases": ("wake", "rem"),
    "reconstruction_weight": 2.0,
    "kl_weight": 0.25,
    "external_weight": 0.0,
    "wake_noise_variance": 0.5,
    "recovery_weight": 0.125,
    "nrem_memories": "mixed",
    "occlusion_min": 0.25,
    "occlusion_max": 0.75,
    "tile_min": 2,
    "tile_max": 4,
    "mask_per": "image",
    "internal_weight": 3.0,
    "mix_recent": 1.0,
    "mix_memories": 0.0,
    "hippocampus": "reservoir",
    "hippocampus_capacity": 100,
    "mixing": "component",
    "perturbation": ("crop", "occlusion"),
    "glimpse": ("crop", "colour"),
    "crop_area": 0.5,
    "colour_strength": 0.25,
    "recovery": "vicreg",
    "agreement": "distance",
    "agreement_weight": 0.5,
    "views": 3,
    "temperature": 0.5,
    "adversary": "hinge",
    "gradient_penalty_weight": 0.25,
    "epochs": 3,
    "batch_size": 32,
    "encoder_learning_rate": 1e-3,
    "generator_learning_rate": 1e-5,
    "schedule": "cosine",
    "warmup_epochs": 1.5,
    "average_weights": 0.99,
    "beta_1": 0.0,
    "beta_2": 0.9,
    "precision": "mixed_bfloat16",
    "seed": 7,
    "hold_out": True,
    "run_dir": "a/run",
    "saved_model_dir": "an/export",
    "overwrite": True,
    "checkpoint_every": 5,
    "log_every": 6,
    "dream_every": 0,
    "probe_every": 0,
}
"""For each flag a value that is not its default."""

REFUSED = [
    ("image_size", "48", "32, 64 or 128"),
    ("image_size", "0", "32, 64 or 128"),
    ("train_examples", "-1", "0 or more"),
    ("network", "deep", "paper|residual"),
    ("latent_dim", "0", "at least 1"),
    ("base_filters", "-4", "at least 1"),
    ("phases", "nrem,rem", "'wake'"),
    ("phases", "wake,nrem,nrem", "once each"),
    ("phases", "wake,dream", "'nrem' and 'rem'"),
    ("phases", "", "'wake'"),
    ("reconstruction_weight", "0.0", "above 0"),
    ("kl_weight", "-0.5", "0 or more"),
    ("external_weight", "-1.0", "0 or more"),
    ("wake_noise_variance", "-0.5", "0 or more"),
    ("recovery_weight", "0.0", "--phases"),
    ("nrem_memories", "double", "single|mixed"),
    ("occlusion_min", "-0.1", "between 0 and 1"),
    ("occlusion_max", "1.5", "between 0 and 1"),
    ("tile_min", "0", "at least 1"),
    ("tile_max", "0", "no less than --tile_min (1)"),
    ("mask_per", "pixel", "batch|image"),
    ("internal_weight", "-1.0", "above 0"),
    ("mix_recent", "1.5", "between 0 and 1"),
    ("mix_memories", "-0.5", "between 0 and 1"),
    ("hippocampus", "none", "last_batch|episodic|reservoir|associative"),
    ("hippocampus_capacity", "0", "at least 1"),
    ("mixing", "sum", "convex|variance_preserving|component|many_memories"),
    ("perturbation", "", "at least one perturbation"),
    ("perturbation", "crop,dream", "of occlusion, crop"),
    ("glimpse", "dream", "of occlusion, crop"),
    ("crop_area", "0.0", "above 0 and at most 1"),
    ("colour_strength", "1.5", "between 0 and 1"),
    ("recovery", "none", "distance|contrast|vicreg|coding_rate"),
    ("agreement", "none", "distance|contrast|vicreg|coding_rate"),
    ("agreement_weight", "0.0", "above 0"),
    ("views", "1", "at least 2"),
    ("temperature", "0.0", "above 0"),
    ("adversary", "none", "minimax|non_saturating|hinge|least_squares"),
    ("gradient_penalty_weight", "-1.0", "0 or more"),
    ("epochs", "0", "at least 1"),
    ("epochs", "many", "whole number"),
    ("batch_size", "1", "at least 2"),
    ("batch_size", "-8", "at least 2"),
    ("encoder_learning_rate", "0.0", "above 0"),
    ("generator_learning_rate", "-1.0", "above 0"),
    ("schedule", "linear", "constant|cosine"),
    ("warmup_epochs", "-0.5", "0 or more"),
    ("warmup_epochs", "50.0", "below --epochs (50)"),
    ("average_weights", "1.0", "at least 0 and below 1"),
    ("beta_1", "1.0", "below 1"),
    ("beta_2", "-0.5", "at least 0"),
    ("precision", "float64", "float32|mixed_bfloat16"),
    ("seed", "-1", "0 or more"),
    ("strategy", "many", "auto|one_device|mirrored|multi_worker|tpu"),
    ("overwrite", "perhaps", "boolean"),
    ("checkpoint_every", "0", "at least 1"),
    ("log_every", "0", "at least 1"),
    ("dream_every", "-1", "0 or more"),
    ("probe_every", "-1", "0 or more"),
]

NOT_FINITE = [
    name
    for name, value in OTHER_VALUES.items()
    if isinstance(value, float) and name not in ("beta_1", "beta_2")
]


def command_line(*arguments: str) -> Config:
    return parse(Config, ["train", *arguments], "train")


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def as_flag(name: str, value) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={','.join(value) if isinstance(value, tuple) else value}"


def test_defaults_are_the_papers():
    config = command_line()
    assert config == Config()
    assert config.condition == "full"
    assert (config.dataset, config.image_size, config.latent_dim) == ("synth_digits", 32, 256)
    assert (config.base_filters, config.batch_size, config.epochs) == (64, 64, 50)
    assert (config.encoder_learning_rate, config.generator_learning_rate) == (2e-4, 2e-4)
    assert (config.beta_1, config.beta_2) == (0.5, 0.999)
    assert (config.mix_recent, config.mix_memories) == (0.5, 0.5)
    assert (config.occlusion_min, config.occlusion_max) == (0, 1)
    assert (config.tile_min, config.tile_max, config.mask_per) == (1, 8, "batch")
    assert config.phases == ("wake", "nrem", "rem")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
def test_every_flag_can_be_set_on_the_command_line(name):
    value = OTHER_VALUES[name]
    assert getattr(Config(), name) != value
    config = command_line(as_flag(name, value))
    assert config == Config(**{name: value})
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED)
def test_impossible_value_is_refused_with_what_is_allowed(name, value, allowed):
    with pytest.raises(UsageError) as error:
        command_line(f"--{name}={value}")
    message = one_line(error)
    assert f"--{name}={value}" in message
    assert allowed in message


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("name", NOT_FINITE)
def test_number_that_is_not_finite_is_refused(name, value):
    with pytest.raises(UsageError) as error:
        command_line(f"--{name}={value}")
    assert f"--{name}={value}" in one_line(error)


def test_seed_beyond_64_bits_is_refused():
    assert command_line(f"--seed={2**63 - 1}").seed == 2**63 - 1
    with pytest.raises(UsageError, match=f"--seed={2**63} "):
        command_line(f"--seed={2**63}")


def test_crossed_ranges_are_refused():
    with pytest.raises(UsageError, match=r"--occlusion_max=0.25 .*--occlusion_min \(0.5\)"):
        command_line("--occlusion_min=0.5", "--occlusion_max=0.25")
    with pytest.raises(UsageError, match=r"--tile_max=2 .*--tile_min \(4\)"):
        command_line("--tile_min=4", "--tile_max=2")
    assert command_line("--occlusion_min=0.5", "--occlusion_max=0.5").occlusion_max == 0.5


@pytest.mark.parametrize("condition", CONDITIONS)
def test_condition_is_recognised_and_has_a_flagfile(condition):
    config = Config(**CONDITIONS[condition])
    assert config.condition == condition
    assert command_line(f"--flagfile={FLAGS / f'{condition}.flags'}") == config


@pytest.mark.parametrize("condition", CONDITIONS)
def test_condition_is_recognised_in_another_run(condition):
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
        command_line(f"--flagfile={file}")


def test_a_penalty_on_a_discriminator_that_does_not_learn_is_refused():
    with pytest.raises(UsageError, match=r"=1.0 is not possible: it must be 0 with --external"):
        command_line("--external_weight=0", "--gradient_penalty_weight=1")


JSON_VALUES = {**OTHER_VALUES, "external_weight": 2.0}


@pytest.mark.parametrize("changes", [{}, JSON_VALUES])
def test_json_keeps_every_flag(changes):
    config = Config(**changes)
    text = config.to_json()
    assert set(json.loads(text)) == {field.name for field in dataclasses.fields(Config)}
    assert Config.from_json(text) == config


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"phases": ["wake"], "colour": 1}'])
def test_other_json_is_not_taken_for_flags(text):
    with pytest.raises(ValueError, match=r"\S"):
        Config.from_json(text)


def test_flags_that_came_later_have_their_defaults_in_an_earlier_run():
    assert Config.from_json('{"seed": 3, "phases": ["wake"]}') == Config(seed=3, phases=("wake",))


def test_a_memory_smaller_than_a_mini_batch_is_refused():
    allowed = r"--hippocampus_capacity=63 .* at least --batch_size \(64\)"
    with pytest.raises(UsageError, match=allowed):
        command_line("--hippocampus=episodic", "--hippocampus_capacity=63")


def test_flags_of_another_version_are_named():
    with pytest.raises(ValueError, match=r"another version .*--nrem_weight and --rem_weight$"):
        Config.from_json('{"nrem_weight": 1.0, "rem_weight": 1.0}')


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
    assert {field.name for field in dataclasses.fields(Config)} >= RUN_ONLY


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
def test_run_is_named_after_data_and_condition(changes, expected):
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
