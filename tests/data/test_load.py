import shutil
import time

import numpy as np
import pytest
from PIL import Image

from ad_keras import data
from ad_keras.errors import Interrupted, RunError, UsageError


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def refusal(kind, *arguments, **options) -> str:
    with pytest.raises(kind) as error:
        data.load(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


class TestFolder:
    def test_classes_take_turns_in_the_order_of_names_whatever_order_they_were_written_in(
        self, tmp_path
    ):
        pictures = {
            name: noise(index, 32, 32, 3)
            for index, name in enumerate(["b/2.png", "a/z.png", "c/1.png", "b/1.png", "a/a.png"])
        }
        for name, pixels in pictures.items():
            save(tmp_path / "train" / name, pixels)
        loaded = data.load(str(tmp_path), "train")
        assert loaded.class_names == ("a", "b", "c")
        assert loaded.labels.tolist() == [0, 1, 2, 0, 1]
        for image, name in zip(
            loaded.images, ("a/a.png", "b/1.png", "c/1.png", "a/z.png", "b/2.png"), strict=True
        ):
            np.testing.assert_array_equal(image, pictures[name])

    def test_label_means_the_same_class_in_both_splits(self, tmp_path):
        for name in ("train/cat/1.png", "train/dog/1.png", "train/owl/1.png", "test/owl/1.png"):
            save(tmp_path / name, noise(0, 32, 32, 3))
        train, test = (data.load(str(tmp_path), split) for split in ("train", "test"))
        assert train.class_names == test.class_names
        assert test.class_names[test.labels[0]] == "owl"

    def test_one_split_may_have_classes_and_the_other_none(self, tmp_path):
        for name in ("train/1.png", "test/cat/1.png"):
            save(tmp_path / name, noise(0, 32, 32, 3))
        train, test = (data.load(str(tmp_path), split) for split in ("train", "test"))
        assert (train.labels, train.class_names) == (None, ())
        assert (test.labels.tolist(), test.class_names) == ([0], ("cat",))

    def test_home_folder_is_expanded(self, image_folder, monkeypatch):
        monkeypatch.setenv("HOME", str(image_folder.parent))
        assert len(data.load(f"~/{image_folder.name}", "test")) == 12

    def test_images_without_class_folders_have_no_labels(self, tmp_path):
        for index in range(3):
            save(tmp_path / "train" / f"{index}.png", noise(index, 32, 32, 3))
        loaded = data.load(str(tmp_path), "train")
        assert loaded.labels is None
        assert loaded.class_names == ()
        np.testing.assert_array_equal(loaded.images[2], noise(2, 32, 32, 3))
        assert loaded.take(2).labels is None
        assert len(loaded.take(2)) == 2

    def test_grey_palette_and_transparent_images_get_three_channels(self, tmp_path):
        grey = noise(0, 32, 32)
        colour = noise(1, 32, 32, 3)
        palette = Image.fromarray(grey, "L").convert("P")
        opaque = np.concatenate([colour, np.full((32, 32, 1), 255, np.uint8)], axis=-1)
        save(tmp_path / "train" / "1_grey.png", grey)
        save(tmp_path / "train" / "2_palette.png", palette)
        save(tmp_path / "train" / "3_rgba.png", opaque)
        save(tmp_path / "train" / "4_palette_with_transparency.png", palette, transparency=b"\0a")
        loaded = data.load(str(tmp_path), "train").images
        three = np.repeat(grey[:, :, None], 3, axis=-1)
        np.testing.assert_array_equal(loaded[0], three)
        np.testing.assert_array_equal(loaded[1], three)
        np.testing.assert_array_equal(loaded[2], colour)
        np.testing.assert_array_equal(loaded[3], three)

    def test_sixteen_bit_grey_keeps_its_shades(self, tmp_path):
        shades = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
        save(tmp_path / "train" / "deep.png", Image.fromarray(shades))
        loaded = data.load(str(tmp_path), "train").images[0].astype(int)
        np.testing.assert_allclose(loaded[:, :, 0], shades / 257, atol=1.5)

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_jpeg_is_read(self, tmp_path, mode):
        flat = Image.new("RGB", (32, 32), (90, 120, 90)).convert(mode)
        save(tmp_path / "train" / "flat.JPG", flat)
        save(tmp_path / "train" / "other.jpeg", flat)
        loaded = data.load(str(tmp_path), "train").images
        assert loaded.shape == (2, 32, 32, 3)
        expected = np.asarray(flat.convert("RGB"))
        assert np.abs(loaded.astype(int) - expected).max() <= 3

    def test_images_are_brought_to_the_wanted_size(self, tmp_path):
        gradient = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
        save(tmp_path / "train" / "gradient.png", gradient)
        small = data.load(str(tmp_path), "train", image_size=32).images[0]
        assert small.shape == (32, 32, 3)
        # Away from the borders, halving a ramp averages pairs of columns.
        expected = gradient.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(small.astype(float) - expected)[:, 1:-1].max() <= 1
        large = data.load(str(tmp_path), "train", image_size=128).images[0]
        assert large.shape == (128, 128, 3)
        assert (np.diff(large[64, :, 0].astype(int)) >= 0).all()

    def test_other_files_and_hidden_folders_are_no_images(self, tmp_path):
        save(tmp_path / "train" / "cat" / "1.png", noise(0, 32, 32, 3))
        save(tmp_path / "train" / "dog" / "1.png", noise(1, 32, 32, 3))
        save(tmp_path / "train" / ".trash" / "1.png", noise(2, 32, 32, 3))
        (tmp_path / "train" / "cat" / "notes.txt").write_text("a cat")
        (tmp_path / "train" / "README").write_text("two animals")
        loaded = data.load(str(tmp_path), "train")
        assert loaded.class_names == ("cat", "dog")
        assert len(loaded) == 2

    def test_missing_split_is_named(self, tmp_path):
        save(tmp_path / "train" / "1.png", noise(0, 32, 32, 3))
        message = refusal(UsageError, str(tmp_path), "test")
        assert "no folder 'test'" in message
        assert f"{tmp_path / 'test'}/<class>/" in message

    @pytest.mark.parametrize("folders", [(), ("cat", "dog")])
    def test_folder_without_images_is_named(self, tmp_path, folders):
        (tmp_path / "train").mkdir()
        for name in folders:
            (tmp_path / "train" / name).mkdir()
        message = refusal(UsageError, str(tmp_path), "train")
        assert f"{tmp_path / 'train'} has no images" in message
        assert ".png" in message

    def test_images_beside_class_folders_are_named(self, tmp_path):
        save(tmp_path / "train" / "cat" / "1.png", noise(0, 32, 32, 3))
        save(tmp_path / "train" / "stray.png", noise(0, 32, 32, 3))
        assert str(tmp_path / "train" / "stray.png") in refusal(UsageError, str(tmp_path), "train")

    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    @pytest.mark.parametrize("damage", ["truncated", "text", "empty", "folder"])
    def test_single_broken_image_is_named(self, tmp_path, suffix, damage):
        save(tmp_path / "train" / "cat" / f"1.{suffix}", noise(0, 32, 32, 3))
        broken = tmp_path / "train" / "cat" / f"2.{suffix}"
        save(broken, noise(1, 32, 32, 3))
        if damage == "truncated":
            broken.write_bytes(broken.read_bytes()[:-200])
        elif damage == "folder":
            broken.unlink()
            broken.mkdir()
        else:
            broken.write_bytes(b"no image" if damage == "text" else b"")
        message = refusal(RunError, str(tmp_path), "train")
        assert f"{broken} is not a readable image" in message

    def test_image_that_is_not_square_is_named_with_its_size(self, tmp_path):
        save(tmp_path / "train" / "cat" / "1.png", noise(0, 32, 32, 3))
        save(tmp_path / "train" / "cat" / "wide.png", noise(0, 20, 40, 3))
        message = refusal(RunError, str(tmp_path), "train")
        assert str(tmp_path / "train" / "cat" / "wide.png") in message
        assert "40 x 20" in message


class TestNames:
    def test_known_name_wins_over_a_folder_that_a_path_still_reaches(self, tmp_path, monkeypatch):
        (tmp_path / "mnist").mkdir()
        monkeypatch.chdir(tmp_path)
        assert data.resolve("mnist") is None
        assert data.resolve("./mnist").samefile(tmp_path / "mnist")

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            *(("svnh", "svhn"), ("cifar", "cifar10"), ("cifar100", "cifar10"), ("MNIST", "mnist")),
            *(("fashion-mnist", "fashion_mnist"), ("synthdigits", "synth_digits")),
            ("mnist/3.0.1", "mnist"),
        ],
    )
    def test_unknown_name_is_refused_with_the_nearest(self, name, nearest, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        message = refusal(UsageError, name, "train")
        assert f"--dataset={name} " in message
        assert nearest in message.split("Did you mean ")[1]

    @pytest.mark.parametrize("name", ["", "mnist/"])
    def test_half_a_name_is_refused(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match="--dataset="):
            data.resolve(name)

    def test_nothing_like_a_name_is_answered_with_all_names(self, tmp_path):
        message = refusal(UsageError, str(tmp_path / "no_such_folder"), "train")
        assert str(tmp_path / "no_such_folder") in message
        assert all(name in message for name in data.DATASETS)

    def test_unknown_size_of_the_generated_set_is_answered_with_its_sizes(self, tmp_path):
        message = refusal(UsageError, "synth_digits/3k", "train", data_dir=str(tmp_path))
        assert "synth_digits/3k" in message
        assert "1k" in message
        assert "50k" in message


@pytest.fixture(scope="module")
def digits():
    """Images and labels as the files of `prepared_mnist` hold them, by split."""
    return {
        "train": (noise(0, 20, 28, 28, 1), np.arange(20) % 10),
        "test": (noise(1, 6, 28, 28, 1), np.arange(6)),
    }


@pytest.fixture(scope="module")
def prepared_mnist(tmp_path_factory, digits):
    """A folder of TensorFlow Datasets that holds a small MNIST."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mnist",
        version="3.0.1",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(28, 28, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})
            for split, (images, labels) in digits.items()
        },
        data_dir=str(folder),
    )
    return folder


@pytest.fixture
def damaged_mnist(prepared_mnist, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(prepared_mnist, tmp_path / "tfds")


class TestPrepared:
    def test_grey_images_get_three_channels_and_the_size_of_the_networks(
        self, prepared_mnist, digits
    ):
        for split, (images, labels) in digits.items():
            loaded = data.load("mnist", split, data_dir=str(prepared_mnist))
            assert loaded.images.shape == (len(images), 32, 32, 3)
            assert loaded.images.dtype == np.uint8
            assert (loaded.images == loaded.images[..., :1]).all()
            assert loaded.class_names == tuple("0123456789")
            # The files are shuffled: find each image among the originals, resized likewise.
            wanted = {
                np.asarray(
                    Image.fromarray(image[..., 0]).resize((32, 32), Image.BILINEAR)
                ).tobytes(): int(label)
                for image, label in zip(images, labels, strict=True)
            }
            found = {
                image[..., 0].tobytes(): int(label)
                for image, label in zip(loaded.images, loaded.labels, strict=True)
            }
            assert found == wanted

    def test_order_is_always_the_same(self, prepared_mnist):
        first, second = (data.load("mnist", "train", data_dir=str(prepared_mnist)) for _ in "ab")
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)

    @pytest.mark.parametrize("damage", ["truncated", "deleted", "flipped", "emptied"])
    def test_damaged_file_is_one_line_that_names_the_folder(self, damaged_mnist, damage):
        folder = damaged_mnist / "mnist" / "3.0.1"
        (file,) = folder.glob("mnist-train.tfrecord*")
        whole, flipped = file.read_bytes(), bytearray(file.read_bytes())
        flipped[len(whole) // 2] ^= 0xFF
        left = {"truncated": whole[: len(whole) // 2], "flipped": flipped, "emptied": b""}
        file.unlink()
        if damage != "deleted":
            file.write_bytes(left[damage])
        message = refusal(RunError, "mnist", "train", data_dir=str(damaged_mnist))
        assert "--dataset=mnist" in message
        assert str(folder) in message

    def test_damaged_description_is_one_line_that_names_the_folder(self, damaged_mnist):
        path = damaged_mnist / "mnist" / "3.0.1" / "dataset_info.json"
        path.write_text(path.read_text()[:20])
        message = refusal(RunError, "mnist", "train", data_dir=str(damaged_mnist))
        assert f"--dataset=mnist in {damaged_mnist / 'mnist'} is damaged" in message

    @pytest.mark.parametrize("name", ["svhn", "cifar10", "mnist", "fashion_mnist"])
    def test_set_that_is_out_of_reach_is_one_line_within_ten_seconds(
        self, name, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setitem(data._SOURCES, name, "http://127.0.0.1:1")
        started = time.monotonic()
        message = refusal(UsageError, name, "train", data_dir=str(tmp_path))
        assert time.monotonic() - started < 10
        full_name = data.DATASETS[name]
        told = f"--dataset={name} ", str(tmp_path / full_name), f"tfds build {full_name}"
        for part in (*told, "--data_dir", "synth_digits"):
            assert part in message

    def test_server_that_never_answers_is_out_of_reach(self, tmp_path, monkeypatch):
        import socket

        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(data, "_SECONDS_TO_CONNECT", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            monkeypatch.setitem(data._SOURCES, "mnist", address)
            started = time.monotonic()
            message = refusal(UsageError, "mnist", "train", data_dir=str(tmp_path))
            assert time.monotonic() - started < 8
        assert f"{address} cannot be reached" in message

    @pytest.mark.parametrize(
        ("name", "failure", "kind", "told"),
        [
            ("mnist", RuntimeError("Checksum differs.\nExpected: ..."), UsageError, "build mnist"),
            ("synth_digits/1k", OSError(28, "No space left"), RunError, "synth_digits/1k"),
            ("synth_digits/1k", Interrupted("SIGINT", 130), Interrupted, "SIGINT"),
        ],
    )
    def test_preparation_that_fails_is_one_line_and_an_interruption_is_one(
        self, name, failure, kind, told, tmp_path, monkeypatch
    ):
        import tensorflow_datasets as tfds

        def fail(builder, **_):
            raise failure

        monkeypatch.setattr(data, "reachable", lambda address: True)
        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
        message = refusal(kind, name, "train", data_dir=str(tmp_path))
        assert told in message
        if kind is not Interrupted:
            assert str(failure.args[-1]).split(".")[0] in message
            assert str(tmp_path) in message

    def test_set_that_another_process_prepared_meanwhile_is_read(
        self, tmp_path, monkeypatch, prepared_mnist
    ):
        import tensorflow_datasets as tfds

        def late(builder, **_):
            shutil.copytree(prepared_mnist, tmp_path, dirs_exist_ok=True)
            raise FileExistsError("Cannot rename")

        monkeypatch.setattr(data, "reachable", lambda address: True)
        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", late)
        first, second = (
            data.load("mnist", "train", data_dir=str(folder)).images
            for folder in (tmp_path, prepared_mnist)
        )
        np.testing.assert_array_equal(first, second)


def test_take_keeps_the_first_images_and_their_labels_which_are_of_every_class(image_folder):
    whole = data.load(str(image_folder), "train")
    part = whole.take(20)
    np.testing.assert_array_equal(part.images, whole.images[:20])
    np.testing.assert_array_equal(part.labels, whole.labels[:20])
    assert part.class_names == whole.class_names
    assert set(part.labels[:12]) == {0, 1, 2}


def test_loading_says_nothing(image_folder, prepared_mnist, capfd):
    data.load(str(image_folder), "train")
    data.load("mnist", "train", data_dir=str(prepared_mnist))
    assert capfd.readouterr() == ("", "")
