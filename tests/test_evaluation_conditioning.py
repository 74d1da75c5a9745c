"""Control, utility and fidelity by group, on features whose dependence on the covariates is known."""

import numpy as np
import pytest
from conftest import tiny_conditional
from evaluation_helpers import TinyExtractor, as_split, people

from vq_ihdm.covariates import Covariate, encode_covariates
from vq_ihdm.evaluation.conditioning import Labelled, conditioning_figures, groups_of
from vq_ihdm.evaluation.evaluator import EvaluationSet
from vq_ihdm.evaluation.features import FeatureNetwork
from vq_ihdm.evaluation.image_sets import ImageSet
from vq_ihdm.evaluation.pipelines import draw_images, evaluate_pipeline
from vq_ihdm.evaluation.report import KINDS

AGE = Covariate("age", "continuous", 20, 80, 50, 17)
SEX = Covariate("sex", "category", categories=("F", "M"))
KNOWN = [AGE, SEX]


def labelled(num_subjects: int, images: int, seed: int, obeys: float = 1.0, shift: float = 0.0) -> Labelled:
    """Features that hold age and sex, `obeys` of them as the table says and the rest of somebody else."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_subjects), images)
    age, sex = rng.uniform(20, 80, num_subjects)[groups], rng.integers(0, 2, num_subjects)[groups]
    table = np.stack([age, sex], axis=1).astype(float)
    strayed = rng.random(len(groups)) > obeys
    shown = np.where(strayed[:, None], rng.permutation(table), table)
    features = rng.normal(size=(len(groups), 8)).astype(np.float32)
    features[:, 0] += shown[:, 0] / 8
    features[:, 1] += 4 * shown[:, 1]
    features[:, 2] += shift * shown[:, 1]
    return Labelled(features, table, groups)


TRAINING, HELD_OUT = labelled(60, 4, seed=0), labelled(40, 4, seed=1)


def measure(generated: Labelled, training: Labelled = TRAINING, decoded=None) -> dict:
    figures = conditioning_figures(KNOWN, training, HELD_OUT, generated, decoded)
    assert all(figure.name in KINDS and figure.floor is not None for figure in figures)
    return {(figure.name, figure.features): figure for figure in figures}


def inside(figure) -> bool:
    low, high = figure.floor.interval
    return low <= figure.generated.value <= high


def test_a_model_that_obeys_scores_like_people():
    figures = measure(labelled(240, 1, seed=2))
    for name, features in (("control_error", "age"), ("control_accuracy", "sex")):
        assert inside(figures[name, features]), name
    assert figures["control_error", "age"].floor.value < 10 and figures["control_accuracy", "sex"].floor.value > 0.9
    for name, features in (("synthetic_error", "age"), ("augmented_accuracy", "sex")):
        figure = figures[name, features]
        assert abs(figure.generated.details["difference"]) < 0.15 * figure.floor.value


def test_a_model_that_does_not_obey_is_seen_and_is_no_use():
    figures = measure(labelled(240, 1, seed=2, obeys=0.0))
    assert figures["control_error", "age"].generated.interval[0] > 1.5 * figures["control_error", "age"].floor.value
    assert figures["control_accuracy", "sex"].generated.interval[1] < 0.7
    synthetic = figures["synthetic_error", "age"].generated
    assert synthetic.details["difference_interval"][0] > 0
    # The real images beside them keep the probe from harm that the synthetic ones alone do.
    assert figures["augmented_error", "age"].generated.value < synthetic.value


def test_a_difference_is_known_better_than_its_two_sides():
    """Both probes are asked about the same people."""
    figure = measure(labelled(240, 1, seed=2))["augmented_error", "age"]
    low, high = figure.generated.details["difference_interval"]
    assert high - low < figure.generated.interval[1] - figure.generated.interval[0]
    assert figure.generated.details["difference"] == pytest.approx(figure.generated.value - figure.floor.value)


def decode(images: Labelled) -> Labelled:
    """A tokenizer that takes nothing of age and sex away and moves every image by the same amount."""
    features = images.features.copy()
    features[:, 0] -= 3
    return images._replace(features=features)


def test_the_mark_of_a_tokenizer_is_told_apart_from_what_a_model_does_not_know():
    stand_in, held_out = decode(TRAINING), decode(HELD_OUT)
    figures = measure(decode(labelled(240, 1, seed=2)), decoded=(stand_in, held_out))
    scans, decoded = figures["synthetic_error", "age"], figures["decoded_synthetic_error", "age"]
    assert scans.generated.value > 2 * scans.floor.value
    assert abs(decoded.generated.details["difference"]) < 0.15 * decoded.floor.value
    apart = decoded.generated.value - decoded.ceiling.value  # both are asked about decoded scans
    assert decoded.generated.details["difference"] == pytest.approx(apart)
    # What a perfect second stage would have: wrong about scans, too, and right about decoded ones.
    assert scans.ceiling.value > 2 * scans.floor.value
    assert decoded.ceiling.value == pytest.approx(decoded.floor.value, rel=1e-3)
    assert figures["control_error", "age"].ceiling.value > 2 * figures["control_error", "age"].floor.value
    # A model that does not obey is no use about decoded scans either.
    disobedient = measure(decode(labelled(240, 1, seed=2, obeys=0.0)), decoded=(stand_in, held_out))
    assert disobedient["decoded_synthetic_error", "age"].generated.details["difference_interval"][0] > 0


def test_a_guess_without_an_image_stands_beside_the_probes():
    generated = labelled(240, 1, seed=2)
    figures = measure(generated)
    ages = figures["guess_error", "age"]
    median = np.median(TRAINING.table[:, 0])
    assert ages.floor.value == pytest.approx(np.abs(HELD_OUT.table[:, 0] - median).mean())
    assert ages.generated.value == pytest.approx(np.abs(generated.table[:, 0] - median).mean())
    assert ages.floor.interval[0] > figures["control_error", "age"].floor.value
    assert figures["guess_accuracy", "sex"].floor.value == figures["guess_accuracy", "sex"].generated.value == 0.5


def test_halves_of_the_people_have_every_category():
    """Balanced accuracy over fewer categories has another chance level: a guess stays at one half on every half."""
    few = HELD_OUT.take(np.flatnonzero((HELD_OUT.table[:, 1] == 0) | (HELD_OUT.groups % 7 == 0)))
    assert len(np.unique(few.groups[few.table[:, 1] == 1])) == 3
    guess = conditioning_figures([AGE, SEX], TRAINING, few, labelled(240, 1, seed=2))
    assert {f.floor.interval for f in guess if f.name == "guess_accuracy"} == {(0.5, 0.5)}


def test_a_category_of_a_single_person_is_not_asked_about():
    sexes = np.where(TRAINING.groups % 2 == 0, 0.0, 1.0)
    rare = Covariate("site", "category", categories=("A", "B", "C"))
    alone = np.where(HELD_OUT.groups == 0, 2.0, HELD_OUT.groups % 2.0)

    def of(images: Labelled, values: np.ndarray) -> Labelled:
        return images._replace(table=values[:, None].astype(float))

    generated = labelled(240, 1, seed=2)
    figures = conditioning_figures(
        [rare], of(TRAINING, sexes), of(HELD_OUT, alone), of(generated, generated.groups % 3)
    )
    control = next(figure for figure in figures if figure.name == "control_accuracy")
    assert control.floor.num_images == len(HELD_OUT.groups) - 4 and control.generated.num_images == 240


def test_a_group_that_is_served_badly_is_seen():
    figures = measure(labelled(240, 1, seed=2, shift=4.0))  # the images of men are off
    women, men = figures["group_kid", "sex F"], figures["group_kid", "sex M"]
    assert women.generated.interval[0] < women.floor.interval[1]
    assert men.generated.interval[0] > men.floor.interval[1]
    assert {features for name, features in figures if name == "group_kid"} >= {"sex F", "sex M"}
    assert sum(features.startswith("age") for name, features in figures if name == "group_kid") == 3


def test_groups_cover_every_value_once():
    values = np.array([20.0, 30.0, 40.0, 50.0, 60.0, 70.0])
    labels, masks = groups_of(AGE, values, np.array([10.0, 90.0]))
    counts = [[mask.sum() for mask in chosen] for chosen in masks]
    assert len(labels) == 3 and np.sum(counts, axis=0).tolist() == [6, 2]
    assert [count[0] for count in counts] == [2, 2, 2]


def test_a_covariate_that_one_side_does_not_know_is_left_out():
    table = TRAINING.table.copy()
    table[10:, 0] = np.nan
    assert {features for _, features in measure(labelled(240, 1, seed=2), TRAINING._replace(table=table))} == {
        "sex", "sex F", "sex M",
    }  # fmt: skip


def with_covariates(num_subjects: int, seed: int) -> ImageSet:
    """People of known age and sex; the age of some is missing."""
    found = people(num_subjects, 4, seed=seed)
    age = [None if subject % 5 == 0 else 20 + 3.0 * subject for subject in found.subjects]
    sex = ["FM"[subject % 2] for subject in found.subjects]
    return ImageSet(found.images, found.subjects, found.slices, as_split(found.images, age=age, sex=sex))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a pipeline that knows age and sex and has learned nothing."""
    training, held_out = with_covariates(20, seed=1), with_covariates(12, seed=2)
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path_factory.mktemp("cache"))
    return evaluate_pipeline(tiny_conditional(KNOWN), EvaluationSet(training, held_out, [network]), num_images=80)


def test_a_pipeline_that_knows_covariates_is_asked_for_those_of_training_images(report):
    control = report.figure("control_accuracy", "sex")
    assert control.generated.num_images == 80 and control.floor.num_images == 48
    low, high = control.generated.interval
    assert low <= 0.5 + 0.15 and high >= 0.5 - 0.15  # it has not learned to obey
    # A fifth of the training images are of people of unknown age, so nothing was asked of as many.
    ages = report.figure("control_error", "age")
    assert ages.generated.num_images == 80 - 16 and ages.floor.num_images == 48 - 12
    decoded = report.figure("decoded_synthetic_error", "age")
    assert decoded.generated.num_images == decoded.ceiling.num_images == 48 - 12


def test_images_are_judged_by_what_they_were_asked_to_be(tmp_path, monkeypatch):
    asked, judged = [], {}

    def drawn(pipe, num_images, seed, batch_size, **keywords):
        asked.append(keywords["covariates"])
        return draw_images(pipe, num_images, seed, batch_size, **keywords)

    def figures(known, training, held_out, generated, decoded=None):
        judged.update(generated=generated, decoded=decoded)
        return conditioning_figures(known, training, held_out, generated, decoded)

    monkeypatch.setattr("vq_ihdm.evaluation.pipelines.draw_images", drawn)
    monkeypatch.setattr("vq_ihdm.evaluation.pipelines.conditioning_figures", figures)
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path)
    reference = EvaluationSet(with_covariates(20, seed=1), with_covariates(12, seed=2), [network])
    evaluate_pipeline(tiny_conditional(KNOWN), reference, num_images=40)
    told = encode_covariates(KNOWN, asked[0], 40)
    np.testing.assert_allclose(judged["generated"].table, told)
    for decoded in judged["decoded"]:  # in place of training people, and held-out people
        np.testing.assert_array_equal(decoded.table[:, 1], decoded.groups % 2)
        ages = np.where(decoded.groups % 5 == 0, np.nan, 20 + 3.0 * decoded.groups)
        np.testing.assert_allclose(decoded.table[:, 0], ages)


def test_the_report_has_a_heading_for_covariates(report):
    markdown = report.to_markdown({})
    assert "## Covariates" in markdown and "covariates of training images" in markdown
    assert markdown.index("Control, error of a probe") > markdown.index("## Covariates")
