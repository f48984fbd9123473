"""The examples run, and do what they say."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def own_part():
    return example("own_part")


def test_stripes_hide_what_they_say(own_part):
    images = tf.ones([2, 4, 16, 3])
    several = [own_part.Stripes(8, 3)(images, [0, key]).numpy() for key in range(6)]
    for perturbed in several:
        hidden = perturbed[0, 0, :, 0] == 0
        assert hidden.sum() == 6
        np.testing.assert_array_equal(hidden[:8], hidden[8:])
        assert (perturbed == perturbed[:1, :1]).all()
    assert len(np.unique([perturbed.ravel() for perturbed in several], axis=0)) > 1


def test_the_angle_is_one_minus_the_cosine(own_part):
    rng = np.random.default_rng(0)
    replayed, recovered = rng.normal(size=(4, 6)), rng.normal(size=(2, 4, 6))
    cosines = [
        view @ latent / np.linalg.norm(view) / np.linalg.norm(latent)
        for views in recovered
        for view, latent in zip(views, replayed, strict=True)
    ]
    np.testing.assert_allclose(own_part.Angle()(replayed, recovered), 1 - np.mean(cosines))


def test_parts_of_ones_own_train_stop_continue_and_are_exported(
    own_part, tiny, tmp_path, flags_of, state_of, assert_same_state, capsys
):
    import ad_keras
    from ad_keras.errors import UsageError
    from ad_keras.runs.restore import restore_run
    from ad_keras.runs.training import train

    config = tiny(tmp_path, dream_every=1)
    train(tiny(tmp_path, epochs=1), build=own_part.build)
    own_part.main(["own_part", *flags_of(config)])
    told = capsys.readouterr().out
    assert "restored after 12 steps, with Angle" in told
    whole = tiny(tmp_path / "whole", dream_every=1)
    train(whole, build=own_part.build)
    assert_same_state(state_of(config.run_dir), state_of(whole.run_dir))
    history = json.loads((Path(config.run_dir) / "history.json").read_text())
    assert 0 < history["2"]["nrem/recovery_loss"] < 2
    assert (Path(config.run_dir) / "figures" / "nrem.png").is_file()
    assert any((Path(config.run_dir) / "logs").glob("events*"))
    assert ad_keras.load_encoder(config.saved_model_dir).output["latent"].shape == (None, 8)
    with pytest.raises(UsageError, match=r"begun with another model: .*Stripes"):
        train(config)
    with pytest.raises(UsageError, match="parts of its own"):
        restore_run(config.run_dir)


def test_plain_keras_tells_the_whole_story_in_few_lines(
    image_folder, tmp_path, monkeypatch, capsys
):
    assert len((EXAMPLES / "train_pad.py").read_text().splitlines()) < 80
    monkeypatch.chdir(tmp_path)
    train_pad = example("train_pad")
    monkeypatch.setattr(train_pad, "BATCH", 8)
    model = train_pad.main(epochs=2, dataset=str(image_folder), filters=4)
    assert model.step.numpy() == 12
    assert re.search(r"[\d.]+% before, [\d.]+% after 2 epochs", capsys.readouterr().out)
    picture = np.asarray(Image.open(tmp_path / "dreams.png"))
    assert picture.shape == (3 * 32, 12 * 32, 3)  # there are 12 test images
    assert picture[-32:].std() > 1
