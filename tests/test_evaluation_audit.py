"""The memorisation audit: it catches planted copies, passes people it never saw, and stops publishing."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import run_script, tiny_vq_ihdm
from evaluation_helpers import TinyExtractor, people, write_data_set
from hub_fixtures import record
from scipy import ndimage

from vq_ihdm import PixelIHDMPipeline
from vq_ihdm.baselines.pixel_ihdm import InverseHeatScheduler, create_unet
from vq_ihdm.data.images import load_slices
from vq_ihdm.data.tokens import encode_split
from vq_ihdm.evaluation.audit import PLANTED, audit, copies_by_chance
from vq_ihdm.evaluation.evaluator import EvaluationSet, evaluate_images
from vq_ihdm.evaluation.features import FeatureNetwork
from vq_ihdm.evaluation.image_sets import ImageSet
from vq_ihdm.evaluation.pipelines import evaluate_pipeline, prior_figures
from vq_ihdm.evaluation.pipelines import tokenize as tokenize_by
from vq_ihdm.evaluation.report import Power
from vq_ihdm.evaluation.second_stage import Tokenized
from vq_ihdm.fit_prior import fit_prior

N = 200


def encode(images: np.ndarray) -> np.ndarray:
    """A tokenizer that loses much: the mean of 4x4 pixels in steps of 8 grey levels."""
    return images.reshape(*images.shape[:-2], 8, 4, 8, 4).mean(axis=(-3, -1)).astype(int) // 8


def decode(codes: np.ndarray) -> np.ndarray:
    blocks = np.kron(codes * 8 + 4.0, np.ones((1, 4, 4)))
    return ndimage.gaussian_filter(blocks, (0, 1, 1)).round().astype(np.uint8)


def individuals(num_subjects: int, slices: int, seed: int) -> ImageSet:
    """People who differ in more than the few measures of `people`: each has a texture, the same on all slices."""
    image_set = people(num_subjects, slices, seed=seed)
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(num_subjects, 32, 32)), (0, 2, 2))
    images = image_set.images + 300 * texture[image_set.subjects] * (image_set.images > 20)
    return ImageSet(images.clip(0, 255).astype(np.uint8), image_set.subjects)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path_factory.mktemp("cache"))
    return EvaluationSet(individuals(40, 4, seed=1), individuals(20, 4, seed=2), [network])


def tokenize(reference: EvaluationSet) -> Tokenized:
    sides = (reference.training.images, reference.held_out.images)
    codes = [encode(np.stack([images, images[..., ::-1]], axis=1)) for images in sides]
    return Tokenized(*codes, *(decode(c[:, 0]) for c in codes), 32, *codes)


@pytest.fixture(scope="module")
def tokenized(reference):
    return tokenize(reference)


def sample(share: float, copies: str, reference, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Images of N people nobody has seen, as a pipeline decodes them, a share of them copies of training images; and
    their codes."""
    codes = encode(individuals(N, 1, seed=3).images)
    count = round(share * N)
    planted = reference.training.images[np.random.default_rng(4).permutation(len(reference.training))[:count]]
    planted = planted[..., ::-1] if mirrored else planted
    codes[:count] = encode(planted)
    images = decode(codes)
    if copies == "verbatim":
        images[:count] = planted
    return images, codes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "copies", "known"),  # without the tokenizer its error may hide decoded copies
    [
        (0.02, "verbatim", "codes"),
        (0.02, "verbatim", "tokenizer"),
        (0.02, "verbatim", "nothing"),
        (0.05, "decoded", "codes"),
        (0.05, "decoded", "tokenizer"),
    ],
)
@pytest.mark.parametrize("mirrored", [True, False])
def test_planted_copies_are_caught(reference, tokenized, share, copies, known, mirrored):
    images, codes = sample(share, copies, reference, mirrored)
    of_tokenizer = {"codes": (tokenized, codes), "tokenizer": (tokenized, None), "nothing": (None, None)}[known]
    audit = evaluate_images(images, reference, *of_tokenizer).audit
    assert audit.failures and not audit.to_json()["passed"]
    assert all("copies" in sentence or "hardly changed" in sentence for sentence in audit.failures)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 10))
def test_people_that_training_never_saw_pass(reference, tokenized, seed):
    images = individuals(N, 1, seed).images
    assert not evaluate_images(images, reference).audit.failures
    decoded = decode(encode(images))
    assert not evaluate_images(decoded, reference, tokenized, encode(images)).audit.failures


def test_mirror_images_of_people_that_training_never_saw_pass(reference):
    """Of heads that all lean to one side: training saw both sides, so generated ones may lean to either."""

    def leaning(image_set: ImageSet) -> ImageSet:
        return ImageSet(np.roll(image_set.images, 4, axis=-1), image_set.subjects)

    leaning_reference = EvaluationSet(*map(leaning, (reference.training, reference.held_out)), reference.networks)
    codes = encode(leaning(individuals(N, 1, seed=3)).images[..., ::-1])
    report = evaluate_images(decode(codes), leaning_reference, tokenize(leaning_reference), codes)
    assert not report.audit.failures
    assert report.figure("nearest_ratio", "codes").generated.value == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_the_report_tells_which_copies_would_have_been_noticed(reference, tokenized):
    images, codes = sample(0, "verbatim", reference)
    report = evaluate_images(images, reference, tokenized, codes)
    caught = {(power.copies, power.planted): power.caught for power in report.audit.power}
    assert {planted for _, planted in caught} == {share for share in PLANTED if round(share * N)}
    assert caught["verbatim", 0.01] == 1 and caught["decoded", 0.05] == 1 and caught["imperfect", 0.05] == 1
    assert caught["moved", 0.01] >= 0.95
    assert "**Passed**" in report.to_markdown({}) and "verbatim copies in" in report.to_markdown({})
    failed = evaluate_images(sample(0.1, "verbatim", reference)[0], reference)
    assert "**Failed.**" in failed.to_markdown({})


@pytest.mark.parametrize("place", [(1, 0), (-3, 2), (4, 4)])
def test_a_copy_that_stands_elsewhere_is_found(reference, place):
    images = individuals(N, 1, seed=3).images
    images[7] = np.roll(reference.training.images[9], place, axis=(0, 1))
    assert "In pixels 1 of the images are training images, hardly changed." in (
        evaluate_images(images, reference).audit.failures
    )


def test_codes_of_any_view_that_training_saw_are_found(reference, tokenized):
    """The codes of a slice that was moved by less than a cell are none of those it has where it stands."""
    sides = (reference.training, reference.held_out)
    views = [np.stack([side.images, np.roll(side.images, 2, axis=-1)], axis=1) for side in sides]
    seen = tokenized._replace(**dict(zip(("training_views", "held_out_views"), map(encode, views), strict=True)))
    images, codes = sample(0, "verbatim", reference)
    codes[7] = encode(views[0])[9, 1]
    verbatim = "In codes 1 of the images are training images, hardly changed."
    assert verbatim in evaluate_images(images, reference, seen, codes).audit.failures
    assert verbatim not in evaluate_images(images, reference, tokenized, codes).audit.failures


def test_a_single_training_image_among_the_generated_ones_is_one_too_many(reference):
    images = individuals(N, 1, seed=3).images
    images[7] = reference.training.images[9]
    failures = evaluate_images(images, reference).audit.failures
    assert "In pixels 1 of the images are training images, hardly changed." in failures


def test_a_system_that_was_trained_on_those_who_are_held_out_fails(reference):
    """To people held out it stands as near as a memorising one to its training images."""
    seen = np.resize(np.arange(len(reference.held_out)), N)
    noise = np.random.default_rng(0).normal(0, 4, (N, *reference.held_out.images.shape[1:]))
    images = np.clip(reference.held_out.images[seen] + noise, 0, 255).astype(np.uint8)
    failures = evaluate_images(images, reference).audit.failures
    assert any("In pixels" in said and "seems to have been trained on them" in said for said in failures)


def test_a_few_copies_among_many_images_are_no_chance():
    assert copies_by_chance(10, 1000) < 1e-4 and copies_by_chance(2, 1000) > 0.5


def copies_of_the_prior(*arguments) -> float:
    """The copy rate in u_T."""
    return next(f for f in prior_figures(*arguments) if f.name == "copy_rate").generated.value


@pytest.mark.parametrize("view", [0, 1])
def test_a_prior_that_draws_training_slices_or_their_mirror_images_copies(view, tmp_path, monkeypatch):
    monkeypatch.setattr("vq_ihdm.data.tokens.CACHE", tmp_path / "tokens")
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path / "cache")
    reference = EvaluationSet(people(16, seed=1), people(8, seed=2), [network])
    pipe = tiny_vq_ihdm()
    tokenized = tokenize_by(pipe, reference)
    codes = torch.from_numpy(tokenized.training_codes)
    learnt = {
        kind: fit_prior(codes[:, view], pipe.prior.sigma, kind, 8, embed=pipe.embed_codes)
        for kind in ("images", "mixture")
    }
    for kind, expected in (("images", 1), ("mixture", 0)):
        pipe.prior = learnt[kind]
        assert copies_of_the_prior(pipe, reference, tokenized, 50) == expected


def test_a_prior_of_pixels_is_audited_too(reference):
    images = torch.from_numpy(reference.training.images)[:, None] / 255
    scheduler = InverseHeatScheduler(num_train_timesteps=2, sigma_max=8.0)
    pipe = PixelIHDMPipeline(create_unet(32, 32, [8, 8, 8], 1, 4).eval(), fit_prior(images, 8.0, "images"), scheduler)
    pipe.set_progress_bar_config(disable=True)
    report = evaluate_pipeline(pipe, reference, num_images=24)
    assert report.figure("copy_rate", "u_T").generated.value == 1
    assert any("In u_T" in sentence for sentence in report.audit.failures)
    for view in (images, images.flip(-1)):
        pipe.prior = fit_prior(view, 8.0, rank=8, num_components=2)
        assert copies_by_chance(round(100 * copies_of_the_prior(pipe, reference, None, 100)), 100) > 0.1


def memorise(pipe, codes: torch.Tensor) -> None:
    """Train prior and denoiser, without dropout, on these codes (n, h, w) until they know them by heart."""
    denoiser = pipe.denoiser
    torch.manual_seed(0)
    sharp = denoiser.embed_codes(codes)
    pipe.prior = fit_prior(sharp, pipe.prior.sigma, "images")
    pipe.prior.allow_saving_images = True
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    timesteps = torch.full((len(codes),), pipe.scheduler.config.num_train_timesteps)
    for _ in range(200):
        blurred = pipe.scheduler.add_noise(sharp, torch.randn_like(sharp), timesteps)
        logits = denoiser(blurred, torch.full((len(codes),), pipe.prior.sigma)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4
    pipe.scheduler.register_to_config(temperature=0.0)


@pytest.mark.slow
def test_a_pipeline_that_knows_eight_slices_by_heart_is_not_published(tmp_path, monkeypatch, capsys):
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path / "cache")
    monkeypatch.setattr("vq_ihdm.evaluation.features.load_networks", lambda weights, device: [network])
    data = write_data_set(tmp_path / "data", train=people(16, seed=1), validation=people(4), test=people(8, seed=2))
    pipe = tiny_vq_ihdm()
    verdicts = {}
    for name in ("fresh", "memorising"):
        if name == "memorising":
            memorise(pipe, encode_split(pipe.vqvae, load_slices(str(data))["train"], mirrored=False)[::8, 0])
        folder = tmp_path / name
        pipe.save_pretrained(folder)
        counts = {"train": {"slices": 64, "subjects": 16}, "test": {"slices": 32, "subjects": 8}}
        record(folder, source="own scans", splits=counts)
        run_script(
            "evaluate.py", "--pipeline", folder, "--dataset_name", data, "--num_images", 100,
            "--output_dir", tmp_path / f"report_{name}",
        )  # fmt: skip
        verdicts[name] = json.loads((folder / "evaluation" / "report.json").read_text())["audit"]
    assert verdicts["fresh"]["passed"] and not verdicts["memorising"]["passed"]
    said = capsys.readouterr().out
    assert "memorisation audit: passed" in said and "memorisation audit: failed" in said
    with pytest.raises(SystemExit, match="memorisation audit of .* failed .*copies of training images"):
        run_script("publish.py", tmp_path / "memorising", "--repo_id", "someone/brains")

    # What may be published shows no scan; the whole report does.
    pictures = {file.name for file in (tmp_path / "fresh" / "evaluation").glob("*.png")}
    assert pictures == {"samples.png", "distances.png", "anatomy.png"}
    assert "nearest.png" not in (tmp_path / "fresh" / "evaluation" / "report.md").read_text()
    assert (tmp_path / "report_fresh" / "nearest.png").exists()
    shutil.rmtree(tmp_path / "fresh" / "evaluation")
    with pytest.raises(SystemExit, match="was not evaluated; run evaluate.py --pipeline"):
        run_script("publish.py", tmp_path / "fresh", "--repo_id", "someone/brains")


def test_an_audit_that_would_notice_nothing_is_not_passed(reference):
    twin = individuals(20, 4, seed=2)
    twin.images[5] = reference.training.images[9]
    both_sides = EvaluationSet(reference.training, twin, reference.networks)
    (blind,) = evaluate_images(individuals(N, 1, seed=3).images, both_sides).audit.failures
    assert blind.startswith("The audit is blind: 5% of imperfect copies among so many images would be noticed in 0%")
    assert not audit([], [Power("imperfect", 0.05, 0.99), Power("decoded", 0.1, 0.0)]).failures


def test_a_person_on_both_sides_makes_the_audit_blind_though_no_scan_is_the_same_twice(reference):
    """Exact copies would still be noticed; what stands as near to training as this person's scans do would not."""
    again = individuals(20, 4, seed=2)
    again.images[5] = np.clip(reference.training.images[9] + np.random.default_rng(0).normal(0, 2, (32, 32)), 0, 255)
    both_sides = EvaluationSet(reference.training, again, reference.networks)
    verdict = evaluate_images(individuals(N, 1, seed=3).images, both_sides).audit
    caught = {(power.copies, power.planted): power.caught for power in verdict.power}
    assert caught["verbatim", 0.05] == 1 and caught["imperfect", 0.05] == 0
    assert "a person stands in training and among those held out" in verdict.failures[0]
