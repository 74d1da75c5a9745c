"""A data set as the train scripts see it: loaded, split by subject, as tensors."""

import csv
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import run_script
from datasets import Dataset, Features, Value, concatenate_datasets, load_dataset
from PIL import Image

from vq_ihdm.data.images import (
    SliceTensors,
    check_image_size,
    load_slices,
)
from vq_ihdm.data.pixels import grey_levels, levels_to_tensor, tensor_to_uint8
from vq_ihdm.errors import InputError


def message(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_eight_bits_there_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = levels_to_tensor(grey_levels(Image.fromarray(pixels)))
    assert tensor.shape == (1, 16, 16) and tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    np.testing.assert_array_equal(tensor_to_uint8(tensor[None])[0], pixels)


def test_sixteen_bits_keep_their_levels():
    pixels = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    tensor = levels_to_tensor(grey_levels(Image.fromarray(pixels)))
    assert len(tensor.unique()) == 4096 and tensor.min() == -1
    np.testing.assert_array_equal(((tensor[0].double() + 1) * 32767.5).round().numpy(), pixels)


def test_out_of_range_is_cut_off():
    assert tensor_to_uint8(torch.tensor([-3.0, -1, 0, 1, 7]).view(1, 1, 1, 5)).flatten().tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]


def test_colours_are_refused():
    with pytest.raises(InputError, match="mode RGB"):
        grey_levels(Image.new("RGB", (4, 4), (1, 1, 2)))
    with pytest.raises(InputError, match="mode I"):
        grey_levels(Image.fromarray(np.full((4, 4), 70_000, np.int32)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_in_all_channels_is_grey(mode):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = Image.fromarray(pixels)
    assert torch.equal(levels_to_tensor(grey_levels(grey.convert(mode))), levels_to_tensor(grey_levels(grey)))


def test_a_built_set_of_sixteen_bits(tmp_path):
    folder = tmp_path / "set"
    run_script(
        "dataset_scripts/template.py", "--image_size", 32, "--num_subjects", 3, "--slices_per_subject", 2,
        "--bit_depth", 16, "--split", 0.4, 0.3, 0.3, "--output_dir", folder,
    )  # fmt: skip
    images = SliceTensors(load_slices(str(folder))["train"])
    batch = images.stack([0, 1])
    assert batch.shape == (2, 1, 32, 32) and torch.equal(batch[1], images[1])
    assert len(batch.unique()) > 256 and batch.min() >= -1 and batch.max() <= 1


@pytest.fixture
def image_folder(template_set, tmp_path):
    """Some slices of the set as a plain folder of images."""

    def make(columns=("file_name", "subject"), subjects=4, place="") -> str:
        folder = tmp_path / "images"
        (folder / place).mkdir(parents=True)
        rows = load_dataset(str(template_set))["train"].select(range(4 * subjects))
        with open(folder / "metadata.csv", "w") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for number, row in enumerate(rows):
                name = str(Path(place, f"{number}.png"))
                row["image"].save(folder / name)
                writer.writerow([name, row["subject"]][: len(columns)])
        return str(folder)

    return make


def test_a_plain_folder_holds_out_whole_subjects(image_folder):
    splits = load_slices(None, image_folder())
    subjects = {name: set(split["subject"]) for name, split in splits.items()}
    assert subjects.keys() == {"train", "validation"}
    assert not subjects["train"] & subjects["validation"]
    assert (len(splits["train"]), len(splits["validation"])) == (12, 4)


def test_a_set_without_a_validation_split_keeps_its_test_split(template_set, tmp_path):
    built = load_dataset(str(template_set))
    for name in ("train", "test"):
        built[name].to_parquet(tmp_path / "set" / f"{name}.parquet")
    splits = load_slices(str(tmp_path / "set"))
    assert splits.keys() == {"train", "validation", "test"}
    assert splits["test"]["subject"] == built["test"]["subject"]
    assert set(splits["train"]["subject"]) | set(splits["validation"]["subject"]) == set(built["train"]["subject"])
    assert not set(splits["train"]["subject"]) & set(splits["validation"]["subject"])


def test_sets_that_cannot_be_used(image_folder, template_set, tmp_path):
    def refused(*arguments):
        with pytest.raises(InputError) as error:
            load_slices(*arguments)
        return message(error)

    assert "--dataset_name or --train_data_dir" in refused(None, None)
    assert "--dataset_name or --train_data_dir" in refused(str(template_set), str(template_set))
    assert "cannot be read as a data set" in refused(str(tmp_path / "missing"))
    Dataset.from_dict({"picture": [1]}).to_parquet(tmp_path / "strange" / "train.parquet")
    said = refused(str(tmp_path / "strange"))
    assert "no column 'image' but ['picture']; name that of the images with --image_column" in said
    load_dataset(str(template_set))["test"].to_parquet(tmp_path / "tests_only" / "test.parquet")
    assert "no split 'train'" in refused(str(tmp_path / "tests_only"))
    assert "--center_crop cuts a square of --resolution pixels" in refused(str(template_set), None, "image", None, True)
    somebody = load_dataset(str(template_set))
    for name, split in somebody.items():
        nobody = Dataset.from_dict({"subject": [None] * len(split)}, Features(subject=Value("string")))
        concatenate_datasets([split.remove_columns("subject"), nobody], axis=1).to_parquet(
            tmp_path / "nobody" / f"{name}.parquet"
        )
    assert "has images without a subject" in refused(str(tmp_path / "nobody"))


@pytest.mark.parametrize("both", [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_a_subject_in_two_splits_is_refused(template_set, tmp_path, both):
    built = load_dataset(str(template_set))
    somebody = min(built["train"]["subject"])
    theirs = built["train"].filter(lambda subject: subject == somebody, input_columns="subject")
    built["train"] = built["train"].filter(lambda subject: subject != somebody, input_columns="subject")
    for name, split in built.items():
        rows = concatenate_datasets([split, theirs]) if name in both else split
        rows.to_parquet(tmp_path / "set" / f"{name}.parquet")
    refusal = f"1 subjects of .* stand both in {both[0]} and in {both[1]}; split it by subject"
    with pytest.raises(InputError, match=refusal):
        load_slices(str(tmp_path / "set"))
    if "validation" not in both:  # the same of one who is held out of `train`
        (tmp_path / "set" / "validation.parquet").unlink()
        with pytest.raises(InputError, match=r"stand both in \w+ and in \w+; split it by subject"):
            load_slices(str(tmp_path / "set"))


def test_spaces_make_no_other_subject(template_set, tmp_path):
    built = load_dataset(str(template_set))
    somebody = min(built["train"]["subject"])
    theirs = built["train"].filter(lambda subject: subject == somebody, input_columns="subject")
    spaced = theirs.map(lambda row: {"subject": row["subject"] + " "})
    for name, split in {"train": built["train"], "validation": spaced}.items():
        split.to_parquet(tmp_path / "set" / f"{name}.parquet")
    with pytest.raises(InputError, match="1 subjects of .* stand both in train and in validation"):
        load_slices(str(tmp_path / "set"))
    (tmp_path / "set" / "validation.parquet").unlink()
    concatenate_datasets([built["train"], spaced]).to_parquet(tmp_path / "set" / "train.parquet")
    splits = load_slices(str(tmp_path / "set"))
    sides = [{subject.strip() for subject in splits[name]["subject"]} for name in ("train", "validation")]
    assert not sides[0] & sides[1]


def test_a_plain_folder_needs_subjects(image_folder):
    with pytest.raises(InputError, match="no column 'subject'"):
        load_slices(None, image_folder(columns=("file_name",)))


def test_a_single_subject_cannot_be_split(image_folder):
    with pytest.raises(InputError, match="a single subject"):
        load_slices(None, image_folder(subjects=1))


def as_(content: bytes | Image.Image):
    """Puts something else into a file."""
    return lambda file: content.save(file) if isinstance(content, Image.Image) else file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (as_(b""), "cannot be used"),
        (lambda file: file.write_bytes(file.read_bytes()[:-200]), "cannot be used"),
        (as_(Image.new("L", (32, 40))), "40x32 pixels of 8 bits where the first one has 32x32"),
        (as_(Image.new("I;16", (32, 32))), "32x32 pixels of 16 bits where"),
        (as_(Image.new("RGB", (32, 32), "red")), "mode RGB"),
    ],
)
@pytest.mark.parametrize("memory", [2**30, 0])  # decoded at once, or one by one
def test_the_image_that_cannot_be_used_is_named(image_folder, monkeypatch, memory, damage, reason):
    monkeypatch.setattr(SliceTensors, "MEMORY", memory)
    folder = Path(image_folder())
    damage(folder / "7.png")
    with pytest.raises(InputError) as error:
        splits = load_slices(None, str(folder))
        for split in splits.values():
            slices = SliceTensors(split)
            slices.stack(list(range(len(slices))))
    assert "7.png" in message(error) and reason in message(error)


def test_a_row_without_a_file_is_named_by_its_number(template_set):
    rows = [
        row["image"]["bytes"]
        for row in load_dataset(str(template_set))["train"].cast_column("image", datasets.Image(decode=False))
    ]
    rows[5] = rows[5][:100]
    split = Dataset.from_dict({"image": rows}, features=Features({"image": datasets.Image()}), split="train")
    with pytest.raises(InputError, match="image 5 of the split 'train' cannot be used"):
        SliceTensors(split)


def test_splits_of_two_sizes_and_empty_ones(image_folder, template_set, tmp_path):
    folder = Path(image_folder())
    for name, size in (("train", 32), ("validation", 64)):
        (tmp_path / "two" / name).mkdir(parents=True)
        Image.new("L", (size, size)).save(tmp_path / "two" / name / "0.png")
    with pytest.raises(InputError, match="32x32.*64x64"):
        load_slices(str(tmp_path / "two"))
    (folder / "metadata.csv").write_text("file_name,subject\n0.png,1\n1.png,\n")
    with pytest.raises(InputError, match="without a subject"):
        load_slices(None, str(folder))


def test_image_size(template_set):
    split = load_dataset(str(template_set))["train"]
    assert check_image_size(split, template_set, 8) == (32, 32)
    with pytest.raises(InputError, match="32x32, no multiple of the downsampling factor 64"):
        check_image_size(split, template_set, 64)
