"""Whole evaluations: of images, of a pipeline, and by the script."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import refusal, run_script
from evaluation_helpers import TinyExtractor, people, write_data_set
from hub_fixtures import DATA, record
from PIL import Image as PILImage

from vq_ihdm import GANPipeline
from vq_ihdm.baselines.stacks import LatentDecoder
from vq_ihdm.errors import InputError
from vq_ihdm.evaluation.evaluator import EvaluationSet, evaluate_images
from vq_ihdm.evaluation.features import FeatureNetwork
from vq_ihdm.evaluation.image_sets import ImageSet, independent, read_data_set, read_image_folder
from vq_ihdm.evaluation.pipelines import evaluate_pipeline, tokenize
from vq_ihdm.evaluation.report import KINDS
from vq_ihdm.evaluation.second_stage import Tokenized
from vq_ihdm.hub.checks import failed_checks
from vq_ihdm.hub.model_card import write_model_card
from vq_ihdm.hub.record import read_record

NOT_OF_IMAGES = ("reconstruction", "second stage", "covariates")  # what only a pipeline has


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    networks = [
        FeatureNetwork(TinyExtractor(), cache=tmp_path_factory.mktemp("cache")),
        FeatureNetwork(TinyExtractor("second", ("16",), seed=1), cache=tmp_path_factory.mktemp("cache")),
    ]
    return EvaluationSet(people(12, seed=1), people(8, seed=2), networks)


@pytest.fixture(scope="module")
def report(reference):
    return evaluate_images(people(24, 1, seed=3).images, reference)


def write_folder(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        PILImage.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def test_every_figure_has_n_an_interval_and_a_floor(report, reference):
    measured = {figure.name for figure in report.figures}
    assert measured == {name for name, kind in KINDS.items() if kind.group not in NOT_OF_IMAGES}
    for figure in report.figures:
        if figure.generated is None:
            assert figure.unavailable
            continue
        assert figure.generated.num_images == 24
        assert np.isfinite([*figure.generated.interval, *figure.floor.interval]).all()
    assert report.figure("kid").floor.num_images == 24
    assert {figure.features for figure in report.figures if figure.name == "kid"} == {"tiny", "second"}
    # The floor is what the training images themselves score in place of generated ones.
    real = evaluate_images(reference.training_sample(24).image_set.images, reference)
    for name in ("kid", "fid", "recall", "coverage", "wasserstein_brain_area"):
        assert real.figure(name).generated.value == report.figure(name).floor.value
        assert report.figure(name).floor.value != report.figure(name).generated.value
        assert real.figure(name).floor == report.figure(name).floor
    # As generated images each is its own, as scans the person's: not one interval for both.
    assert real.figure("kid").generated.interval != real.figure("kid").floor.interval


def test_a_reconstruction_has_its_own_interval_where_it_was_compared_unpaired_before(reference):
    images, people = reference.held_out.images // 2, reference.held_out.subjects
    unpaired, paired = (reference.fidelity(ImageSet(images, people), reference.held_out, p) for p in (False, True))
    assert paired["kid", "tiny"].value == unpaired["kid", "tiny"].value
    assert paired["kid", "tiny"].interval != unpaired["kid", "tiny"].interval


def test_no_image_is_shown_to_a_network_twice(tmp_path):
    extractor, shown = TinyExtractor(), []
    extractor.register_forward_hook(lambda _, inputs, __: shown.append(len(inputs[0])))
    reference = EvaluationSet(people(12, seed=1), people(8, seed=2), [FeatureNetwork(extractor, cache=tmp_path)])
    evaluate_images(people(24, 1, seed=3).images, reference)
    moved_copies = len(reference.training)
    assert sum(shown) == len(reference.training) + len(reference.held_out) + 24 + moved_copies


def test_the_inception_score_is_never_made_up(reference):
    headless = EvaluationSet(reference.training, reference.held_out, reference.networks[1:])
    isc = evaluate_images(people(24, 1, seed=3).images, headless).figure("isc")
    assert isc.generated is None and "classifier" in isc.unavailable


def test_real_images_score_like_real_images_and_noise_does_not(reference):
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 32), dtype=np.uint8)
    fresh, noisy = (evaluate_images(images, reference) for images in (people(24, 1, seed=4).images, noise))
    for name in ("kid", "fid"):
        floor = noisy.figure(name).floor
        assert noisy.figure(name).generated.interval[0] > floor.interval[1]
        assert fresh.figure(name).generated.value < noisy.figure(name).generated.value / 3
    assert noisy.figure("ms_ssim").generated.value < fresh.figure("ms_ssim").generated.value


def test_figures_are_repeatable_and_do_not_depend_on_the_order(reference, report):
    generated = people(24, 1, seed=3).images
    again = evaluate_images(generated, reference)
    assert again.to_json() == report.to_json()
    shuffled = evaluate_images(generated[::-1].copy(), reference)
    for name in ("fid", "precision", "coverage", "copy_rate", "wasserstein_brain_area"):
        assert shuffled.figure(name).generated.value == pytest.approx(report.figure(name).generated.value, rel=1e-4)


@pytest.mark.slow
def test_the_report_is_json_markdown_and_pictures(report, tmp_path):
    report.save(tmp_path, scans=True)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["schema_version"] == 2 and content["generated"]["num_images"] == 24
    assert content["held_out"] == {"num_images": 32, "num_subjects": 8}
    kid = next(figure for figure in content["figures"] if figure["name"] == "kid")
    assert kid["group"] == "fidelity" and kid["better"] == "lower" and kid["generated"]["details"]["subset_size"] == 12
    markdown = (tmp_path / "report.md").read_text()
    for figure in report.figures:
        assert KINDS[figure.name].title in markdown
    for name in re.findall(r"\]\((\S+\.png)\)", markdown):
        width, height = PILImage.open(tmp_path / name).size
        assert width > 500 and height > 200
    assert {file.name for file in tmp_path.glob("*.png")} == set(report.pictures)


@pytest.mark.slow
def test_a_pipeline_is_measured_with_its_tokenizer_and_its_prior(pipeline, reference):
    report = evaluate_pipeline(pipeline, reference, num_images=24, batch_size=7, num_inference_steps=2, temperature=0.5)
    assert report.about["generated"]["num_inference_steps"] == 2
    assert {figure.features for figure in report.figures if figure.name == "nearest_ratio"} == {
        "pixels", "tiny", "decoded pixels", "codes", "u_T",
    }  # fmt: skip
    assert report.figure("rfid").generated.num_images == len(reference.held_out)
    # The tokenizer has learned nothing: what it decodes is no nearer to real images than its pipeline's draws.
    fid = report.figure("fid")
    assert fid.ceiling.value > fid.floor.interval[1]
    other_batches = evaluate_pipeline(
        pipeline, reference, num_images=24, batch_size=24, num_inference_steps=2, temperature=0.5
    )
    values = [[figure.generated.value for figure in r.figures if figure.generated] for r in (report, other_batches)]
    assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-6)


def test_a_tokenizer_that_loses_nothing_reaches_the_floor(reference):
    training, held_out = (image_set.images for image_set in (reference.training, reference.held_out))
    both_views = [np.stack([images, images[..., ::-1]], axis=1) for images in (training, held_out)]
    tokenized = Tokenized(*both_views, training, held_out, 256, *both_views)
    generated = people(24, 1, seed=3).images
    report = evaluate_images(generated, reference, tokenized, codes=generated)
    assert report.figure("rfid").generated.value == pytest.approx(0, abs=1e-3)
    for figure in report.figures:
        if figure.ceiling is not None and figure.floor is not None:
            assert figure.ceiling.value == figure.floor.value
    for name in ("kid", "recall"):  # the decoded codes of held-out images are these images
        assert report.figure(f"second_stage_{name}").generated.value == report.figure(name).generated.value
    assert report.figure("copy_rate", "codes").generated.value == 0


def test_sets_are_read_with_subjects_and_levels(tmp_path):
    training, validation, test = people(5, seed=1), people(4, seed=2), people(4, seed=3)
    write_data_set(tmp_path, train=training, validation=validation, test=test)
    read_training, held_out = read_data_set(str(tmp_path), None)
    np.testing.assert_array_equal(read_training.images, training.images)
    np.testing.assert_array_equal(held_out.images, test.images)  # by which nothing was chosen
    both = read_data_set(str(tmp_path), ["validation", "test"])[1]
    np.testing.assert_array_equal(both.images, np.concatenate([validation.images, test.images]))
    assert both.num_subjects == 8 and both.slices.max() == 3
    with pytest.raises(InputError, match="no split 'dev' but train, validation, test"):
        read_data_set(str(tmp_path), ["dev"])
    with pytest.raises(InputError, match="leave train out of --split"):
        read_data_set(str(tmp_path), ["train", "test"])
    halved = read_data_set(str(tmp_path), resolution=16)
    assert [side.images.shape[1:] for side in halved] == [(16, 16), (16, 16)]


def test_a_scan_on_both_sides_of_the_split_is_refused(tmp_path):
    training, held_out = people(5, seed=1), people(4, seed=2)
    held_out.images[3] = training.images[7]
    write_data_set(tmp_path, train=training, test=held_out, validation=people(4, seed=3))
    with pytest.raises(InputError, match="image 3 of test is image 7 of train, pixel by pixel"):
        read_data_set(str(tmp_path))
    assert len(read_data_set(str(tmp_path), ["validation"])[1]) == len(held_out)


def test_sixteen_bit_images_take_the_same_path(tmp_path):
    grey = people(1).images[0]
    write_folder(tmp_path / "eight", [grey])
    write_folder(tmp_path / "sixteen", [grey.astype(np.uint16) * 257])
    np.testing.assert_array_equal(read_image_folder(tmp_path / "eight"), read_image_folder(tmp_path / "sixteen"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "holds neither PNG nor NIfTI files"),
        ([np.zeros((32, 32), np.uint8), np.zeros((32, 40), np.uint8)], r"001.png is 32x40 where .*000.png is 32x32"),
        (
            [np.zeros((32, 32), np.uint8), np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)],
            r"001.png has other pixels than grey levels",
        ),
    ],
)
def test_a_folder_that_cannot_be_measured_is_told_in_one_sentence(tmp_path, images, message):
    folder = write_folder(tmp_path / "images", images)
    with pytest.raises(SystemExit, match=message) as stop:
        run_script("evaluate.py", "--images", folder, "--dataset_name", tmp_path, "--output_dir", tmp_path / "out")
    assert "\n" not in str(stop.value) and not (tmp_path / "out").exists()


def test_a_damaged_file_is_named_and_a_contact_sheet_is_left_out(tmp_path):
    folder = write_folder(tmp_path / "images", people(2, 1).images)
    PILImage.new("L", (99, 50)).save(folder / "contact_sheet.png")
    assert read_image_folder(folder).shape == (2, 32, 32)
    (folder / "002.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="002.png cannot be used .*; remove it or write it again"):
        read_image_folder(folder)


@pytest.mark.parametrize("name", ["000003.png", "000003.nii.gz"])
def test_whatever_is_damaged_in_a_file_is_told_in_one_sentence(generated, tmp_path, name):
    data, refused = (generated / name).read_bytes(), 0
    places = range(0, len(data), 11)
    for place in places:
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]):
            (tmp_path / name).write_bytes(damaged)
            try:
                read_image_folder(tmp_path)
            except InputError as error:
                assert name in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > len(places)


def test_nifti_slices_are_read_as_the_same_images(generated, tmp_path):
    images = read_image_folder(generated)
    for file in generated.glob("*.nii.gz"):
        shutil.copy(file, tmp_path)
    np.testing.assert_array_equal(read_image_folder(tmp_path), images)
    nib.save(nib.Nifti1Image(np.zeros((32, 32, 2), np.float32), np.eye(4)), tmp_path / "volume.nii.gz")
    with pytest.raises(InputError, match=r"volume.nii.gz holds float32 of shape \(32, 32, 2\) where one slice"):
        read_image_folder(tmp_path)


def test_too_few_images_or_people_and_other_sizes_are_told_in_one_sentence(reference):
    with pytest.raises(InputError, match="19 generated images are too few"):
        evaluate_images(people(19, 1).images, reference)
    with pytest.raises(InputError, match="generated images of 48x48 cannot be compared with training images of 32x32"):
        evaluate_images(people(24, 1, size=48).images, reference)
    with pytest.raises(InputError, match="3 held-out subjects are too few"):
        EvaluationSet(people(12), people(3, 8), reference.networks)
    with pytest.raises(InputError, match="held-out images of 48x48"):
        EvaluationSet(people(12), people(8, size=48), reference.networks)


def test_the_script_refuses_options_that_do_nothing_and_folders_of_others(tmp_path, pipeline_folder, capsys):
    images = write_folder(tmp_path / "images", people(20, 1).images)
    for flag in ("--temperature", "--num_images", "--seed", "--batch_size"):
        with pytest.raises(SystemExit, match=f"{flag} applies to --pipeline"):
            run_script(
                "evaluate.py", "--images", images, "--dataset_name", tmp_path, "--output_dir", tmp_path / "out", flag, 1
            )
    for device in ("gpu", "cuda:99"):
        with pytest.raises(SystemExit):
            run_script("evaluate.py", "--images", images, "--dataset_name", tmp_path, "--device", device)
        assert f"{device} is no device of this machine" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--tokenizer belongs to --images"):
        run_script(
            "evaluate.py", "--pipeline", pipeline_folder, "--dataset_name", tmp_path, "--output_dir", tmp_path / "out",
            "--tokenizer", pipeline_folder,
        )  # fmt: skip
    with pytest.raises(SystemExit, match="no earlier output"):
        run_script("evaluate.py", "--images", images, "--dataset_name", tmp_path, "--output_dir", images)
    assert len(list(images.iterdir())) == 20


@pytest.mark.slow
def test_the_script_measures_a_folder_of_images(reference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vq_ihdm.evaluation.features.load_networks", lambda weights, device: reference.networks)
    images = write_folder(tmp_path / "images", people(20, 1, seed=5).images)
    write_data_set(tmp_path / "data", train=people(4, 5, seed=1), validation=people(4, 5, seed=2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("an earlier report, to be replaced")
    run_script("evaluate.py", "--images", images, "--dataset_name", tmp_path / "data", "--output_dir", tmp_path / "out")
    assert "KID" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    isc = next(figure for figure in content["figures"] if figure["name"] == "isc")
    assert isc["generated"] is not None or isc["unavailable"]
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".json", ".md", ".png"}


@pytest.mark.slow
def test_a_pipeline_may_be_compared_with_data_it_was_not_trained_on(pipeline_folder, reference, tmp_path, monkeypatch):
    """The report tells, and is not laid beside the weights, where card and publish.py would take it for their own."""
    monkeypatch.setattr("vq_ihdm.evaluation.features.load_networks", lambda weights, device: reference.networks)
    model, out = Path(shutil.copytree(pipeline_folder, tmp_path / "model")), tmp_path / "out"
    sets = {"train": people(4, 5, seed=1), "validation": people(4, 5), "test": people(4, 5, seed=2)}
    data = write_data_set(tmp_path / "data", **sets)
    flags = ("--pipeline", model, "--dataset_name", data, "--num_images", 20, "--output_dir", out)
    record(model)
    run_script("evaluate.py", *flags)
    content = json.loads((out / "report.json").read_text())
    counts = {"slices": 20, "subjects": 4}
    assert content["data"] == {"source": "own scans", "splits": {"train": counts, "test": counts}}
    assert content["trained_on"] == {"source": "OASIS-1", "splits": DATA["splits"]}
    assert "trained on other data: 80 images of 20 subjects (OASIS-1)" in (out / "report.md").read_text()
    assert not (model / "evaluation").exists()

    write_model_card(record(model, **content["data"]))
    assert "Not evaluated yet" in (model / "README.md").read_text()
    run_script("evaluate.py", *flags)
    assert "against 20 images of 4 held-out subjects (the split test)" in (model / "README.md").read_text()
    own = json.loads((model / "evaluation" / "report.json").read_text())
    assert "trained_on" not in own and own["weights"] == read_record(model)["weights"]
    assert "unevaluated" not in failed_checks(model)

    # Drawn otherwise it is no evaluation of the model, and what the model has stays.
    before = (model / "evaluation" / "report.json").read_bytes()
    run_script("evaluate.py", *flags, "--temperature", 0.5)
    assert json.loads((out / "report.json").read_text())["generated"]["temperature"] == 0.5
    assert (model / "evaluation" / "report.json").read_bytes() == before
    # Nor is what those say who chose the best network.
    run_script("evaluate.py", *flags, "--split", "validation")
    assert json.loads((out / "report.json").read_text())["data"]["splits"].keys() == {"train", "validation"}
    assert (model / "evaluation" / "report.json").read_bytes() == before
    inside = (*flags[:-1], model / "evaluation" / "full")
    assert "is replaced as a whole; name an --output_dir outside" in refusal(run_script, "evaluate.py", *inside)


def test_a_tokenizer_without_a_vqgan_is_refused_before_anything_is_measured(tmp_path):
    images = write_folder(tmp_path / "images", people(20, 1).images)
    GANPipeline(LatentDecoder(32, 32, latent_dim=8).eval()).save_pretrained(tmp_path / "gan")
    arguments = ("--images", images, "--dataset_name", tmp_path / "missing", "--output_dir", tmp_path / "out")
    said = refusal(run_script, "evaluate.py", *arguments, "--tokenizer", tmp_path / "gan")
    assert "gan holds a GANPipeline, which has no VQGAN; leave --tokenizer out" in said
    assert "no model_index.json" in refusal(run_script, "evaluate.py", *arguments, "--tokenizer", images)


def test_a_tokenizer_of_other_sizes_is_told_in_one_sentence(pipeline, tmp_path):
    sides = (people(8, 6, seed=seed, size=30) for seed in (1, 2))
    data = write_data_set(tmp_path / "data", **dict(zip(("train", "test"), sides, strict=True)))
    reference = EvaluationSet(*read_data_set(str(data)), [])
    with pytest.raises(InputError, match="no multiple of the downsampling factor 4"):
        tokenize(pipeline, reference)


def test_generated_images_are_independent_and_scans_are_not():
    images = people(3).images
    assert independent(images).num_subjects == 12
    assert ImageSet(images, np.repeat(np.arange(3), 4)).num_subjects == 3
