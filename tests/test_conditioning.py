"""From the columns of a set to a pipeline that can be asked: vocabulary, training, sampling."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import CODE_DIM, HEIGHT, NUM_CODES, WIDTH, run_script, tiny_conditional, tiny_denoiser, tiny_vq_model
from conftest import KNOWN_COVARIATES as KNOWN
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from vq_ihdm import AbsorbingDiffusionPipeline, VQIHDMPipeline
from vq_ihdm.baselines.absorbing import AbsorbingDenoiser, AbsorbingDenoiserConfig
from vq_ihdm.data.conditioning import askable, covariate_table, describe_vocabulary, find_vocabulary, withhold
from vq_ihdm.errors import InputError
from vq_ihdm.fit_prior import MIN_SUBJECTS, fit_prior

pytestmark = pytest.mark.slow


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- a set -------------------------------------------------------------------------------------------------------


def people(num_subjects: int, first: int = 0) -> Dataset:
    """Two slices a subject; one subject has no age, and a single one has CDR 3."""
    rng = np.random.default_rng(first)
    rows = []
    for i in range(num_subjects):
        for level in (0.3, 0.7):
            rows.append(
                {
                    "image": PILImage.fromarray(rng.integers(0, 256, (32, 32), np.uint8)),
                    "subject": f"s{first + i}",
                    "slice": int(100 * level),
                    "slice_level": level,
                    "age": None if i == 0 else 20.4 + 2 * i,
                    "sex": "FM"[i % 2],
                    "cdr": "3" if i == 1 else "01"[i % 2],
                    "centre": "A",
                }
            )
    features = Features(
        image=Image(mode="L"), subject=Value("string"), slice=Value("int32"), slice_level=Value("float32"),
        age=Value("float32"), sex=ClassLabel(names=["F", "M"]), cdr=ClassLabel(names=["0", "1", "3"]),
        centre=Value("string"),
    )  # fmt: skip
    return Dataset.from_list(rows, features=features)


def test_the_vocabulary_of_a_set():
    train = people(2 * MIN_SUBJECTS + 2)
    known = {covariate.name: covariate for covariate in find_vocabulary(train, None, "here")}
    assert list(known) == ["age", "sex", "cdr", "slice_level"]  # not the centre, of which nobody said it matters
    assert (known["age"].kind, known["age"].low, known["age"].high) == ("continuous", 20, 65)
    assert known["age"].mean == pytest.approx(np.nanmean(np.array(train["age"], float)), rel=1e-6)
    assert known["slice_level"].kind == "level"
    assert known["sex"].categories == ("F", "M")
    assert known["cdr"].categories == ("0", "1")  # "3" would show one person


def test_missing_values_and_unknown_categories_are_not_given():
    train = people(2 * MIN_SUBJECTS + 2)
    known = find_vocabulary(train, ["age", "cdr"], "here")
    table = covariate_table(known, train)
    assert table.shape == (len(train), 2)
    assert table[:, 0].isnan().nonzero()[:, 0].tolist() == [0, 1]
    assert table[:, 1].isnan().nonzero()[:, 0].tolist() == [2, 3]
    assert covariate_table(known, train.remove_columns("age"))[:, 0].isnan().all()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["weight"], "here has no covariate weight; it has slice_level, age, sex, cdr, centre"),
        (["image"], "no covariate image"),
        (["centre"], "nothing to learn from centre in here: .* --covariates"),
    ],
)
def test_columns_of_which_nothing_can_be_learnt(names, sentence):
    with pytest.raises(InputError, match=sentence):
        find_vocabulary(people(2 * MIN_SUBJECTS), names, "here")


def test_other_people_are_asked_for_as_far_as_the_model_knows_them():
    """Own scans, of people ten years older than anybody the model has seen."""
    nan = float("nan")
    table = torch.tensor([[20.0, 1.0], [84.0, nan], [95.0, 0.0], [nan, 1.0]])  # six years more than 80 are allowed
    asked = askable(KNOWN, table)
    torch.testing.assert_close(asked, table.masked_fill(table > 90, nan), equal_nan=True)


def test_every_number_of_covariates_is_withheld_in_a_share_of_the_rows():
    torch.manual_seed(0)
    given = (~withhold(torch.ones(30_000, 3), 0.5).isnan()).sum(1).bincount() / 30_000
    # In half of the rows all are given, in the others 0, 1, 2 and 3 of them equally often.
    torch.testing.assert_close(given, torch.tensor([0.125, 0.125, 0.125, 0.625]), atol=0.01, rtol=0)
    assert not withhold(torch.ones(100, 3), 0).isnan().any()
    assert withhold(torch.ones(100, 0), 0.5).shape == (100, 0)


# ---- a call ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked() -> VQIHDMPipeline:
    return tiny_conditional()


def test_any_subset_may_be_asked_for_and_the_rest_is_drawn(asked):
    out = asked(3, covariates={"age": 75}, generator=seeded(), output_type="latent")
    assert out.covariates["age"] == [75] * 3 and set(out.covariates["sex"]) <= {"F", "M"}
    assert asked(1, covariates={"age": 75.3}, output_type="latent").covariates["age"] == [75.3]  # as asked
    out = asked(3, covariates={"age": [75, 30, None], "sex": "F"}, generator=seeded(), output_type="latent")
    assert out.covariates["age"][:2] == [75, 30] and 20 <= out.covariates["age"][2] <= 80
    assert out.covariates["sex"] == ["F"] * 3
    assert not any(value is None for values in asked(2).covariates.values() for value in values)


def test_what_is_asked_for_changes_the_image_whatever_the_chunks(asked):
    ages = {"age": [30.0, 75.0, 30.0]}
    images = asked(3, covariates=ages, generator=[seeded(1) for _ in range(3)], output_type="latent").images
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    chunked = asked(
        3, covariates=ages, generator=[seeded(1) for _ in range(3)], output_type="latent", chunk_size=1
    ).images
    assert torch.equal(chunked, images)


def test_the_denoiser_alone_listens_too(asked):
    sample = torch.randn(2, CODE_DIM, HEIGHT, WIDTH, generator=seeded())
    young, old, nothing = (
        asked(2, sample=sample, covariates=given, temperature=0, output_type="latent").images
        for given in ({"age": 25}, {"age": 75}, None)
    )
    assert not torch.equal(young, old) and not torch.equal(young, nothing)


def test_guidance_needs_a_second_evaluation_and_only_then(asked):
    calls = []
    hook = asked.denoiser.register_forward_hook(lambda *_: calls.append(1))
    arguments = {"covariates": {"sex": "F"}, "generator": seeded(), "output_type": "latent"}
    plain = asked(2, **arguments).images
    assert len(calls) == 1
    arguments["generator"] = seeded()
    guided = asked(2, guidance_scale=5.0, **arguments).images
    assert len(calls) == 3 and not torch.equal(guided, plain)
    # The logits move from those of nothing asked towards, and past, those of what is asked.
    sigma, nothing_known = torch.full((2,), asked.prior.sigma), torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    told, state = asked.denoiser.encode_covariates({"sex": "F"}, 2), torch.randn(2, CODE_DIM, HEIGHT, WIDTH)
    with torch.no_grad():
        given = asked.denoiser(state, sigma, known=nothing_known, covariates=told).logits
        free = asked.denoiser(state, sigma, known=nothing_known).logits
    drawn = {"sample": state, "covariates": {"sex": "F"}, "temperature": 0, "output_type": "latent"}
    most_likely = asked(2, guidance_scale=20.0, **drawn).images
    assert torch.equal(most_likely, (free + 20 * (given - free)).argmax(-1))
    assert not torch.equal(most_likely, (free - 20 * (given - free)).argmax(-1))
    calls.clear()
    # Nothing is known of states that were given without covariates: nothing to be guided by.
    asked(2, guidance_scale=5.0, sample=torch.zeros(2, CODE_DIM, HEIGHT, WIDTH), generator=seeded())
    assert len(calls) == 1
    hook.remove()
    # At 0 nothing of what is asked reaches the denoiser.
    sample = torch.randn(2, CODE_DIM, HEIGHT, WIDTH, generator=seeded())
    free, nothing = (
        asked(2, sample=sample, temperature=0, output_type="latent", **given).images
        for given in ({"covariates": {"sex": "F"}, "guidance_scale": 0}, {})
    )
    assert torch.equal(free, nothing)


def test_what_cannot_be_asked_for(asked, pipeline):
    for given, sentence in [({"weight": 7}, "it knows age, sex"), ({"sex": "X"}, "F, M"), ({"age": 120}, "20 to 80")]:
        with pytest.raises(ValueError, match=sentence):
            asked(1, covariates=given)
    with pytest.raises(ValueError, match="trained without covariates"):
        pipeline(1, covariates={"age": 75})
    assert pipeline(1).covariates is None


def test_a_conditional_pipeline_travels(asked, tmp_path):
    asked.save_pretrained(tmp_path)
    loaded = VQIHDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    first, again = (p(2, covariates={"sex": "M"}, generator=seeded(), output_type="latent") for p in (asked, loaded))
    assert torch.equal(first.images, again.images) and first.covariates == again.covariates


def test_a_prior_of_other_covariates_is_refused(asked):
    prior = fit_prior(
        torch.randn(30, CODE_DIM, HEIGHT, WIDTH, generator=seeded()), 2.0, rank=4, num_components=1,
        known_covariates=KNOWN[1:], covariates=(torch.arange(30) % 2).float()[:, None],
    )  # fmt: skip
    with pytest.raises(ValueError, match="covariates"):
        VQIHDMPipeline(asked.vqvae, asked.denoiser, prior, asked.scheduler)


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_absorbing_diffusion_can_be_asked_as_well(order):
    torch.manual_seed(0)
    denoiser = AbsorbingDenoiser(
        AbsorbingDenoiserConfig(NUM_CODES, HEIGHT, WIDTH, 8, 16, 1, 2, covariates=[asdict(c) for c in KNOWN])
    ).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pipeline = AbsorbingDiffusionPipeline(tiny_vq_model(), denoiser)
    pipeline.set_progress_bar_config(disable=True)

    def codes(**given):
        return pipeline(2, 4, reveal_order=order, generator=seeded(), output_type="latent", **given)

    young, old = codes(covariates={"age": 25}), codes(covariates={"age": 75})
    assert not torch.equal(young.images, old.images)
    assert old.covariates == {"age": [75, 75], "sex": [None, None]}
    assert not torch.equal(codes(covariates={"age": 75}, guidance_scale=4.0).images, old.images)
    assert torch.equal(codes(covariates={"age": 75}, guidance_scale=0).images, codes().images)


# ---- a training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "people"
    (folder / "data").mkdir(parents=True)
    people(2 * MIN_SUBJECTS + 2).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    people(4, first=90).to_parquet(folder / "data" / "validation-00000-of-00001.parquet")
    return folder


@pytest.fixture
def fitted_to(monkeypatch):
    """What the prior of the latest run of `train_ihdm.py` was fitted to, by the names of `fit_prior`."""
    seen = {}

    def recorded(states, *arguments, **keywords):
        seen.update(keywords, states=states)
        return fit_prior(states, *arguments, **keywords)

    monkeypatch.setattr("vq_ihdm.fit_prior.fit_prior", recorded)
    return seen


def test_what_a_model_can_be_asked_for_is_told():
    train = people(2 * MIN_SUBJECTS)
    assert describe_vocabulary(find_vocabulary(train, ["age"], "here"), train) == (
        "the model can be asked for age (20 to 60); left out: sex, cdr, slice_level (a category counts where 10 "
        "training subjects have it)"
    )


def test_the_prior_is_fitted_to_slices_beside_their_own_covariates(
    people_set, tiny_preset, vqgan_run, fitted_to, tmp_path
):
    """Both views of a slice have its covariates and its person."""
    run_script(
        "train_ihdm.py", "--config", tiny_preset, "--dataset_name", people_set, "--vqvae", vqgan_run / "best",
        "--max_train_steps", 1, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    train = people(2 * MIN_SUBJECTS + 2)
    table = covariate_table(fitted_to["known_covariates"], train)
    assert len(fitted_to["states"]) == len(fitted_to["subjects"]) == len(fitted_to["covariates"]) == 2 * len(train)
    for view in (0, 1):
        torch.testing.assert_close(fitted_to["covariates"][view::2], table, equal_nan=True)
        by_slice = dict(zip(train["subject"], fitted_to["subjects"][view::2].tolist(), strict=True))
        assert [by_slice[subject] for subject in train["subject"]] == fitted_to["subjects"][view::2].tolist()
    assert len(np.unique(fitted_to["subjects"])) == 2 * MIN_SUBJECTS + 2


def test_people_beyond_what_a_denoiser_knows_are_nobody_it_is_told_of(
    people_set, tiny_preset, vqgan_run, fitted_to, tmp_path
):
    """Their ages stand for others in its embedding, which knows 20 to 65."""
    arguments = ("--config", tiny_preset, "--vqvae", vqgan_run / "best", "--max_train_steps", 1)
    run_script("train_ihdm.py", *arguments, "--dataset_name", people_set, "--output_dir", tmp_path / "young")
    older = tmp_path / "older" / "data"
    older.mkdir(parents=True)
    people(32).to_parquet(older / "train-00000-of-00001.parquet")  # of up to 82 years
    people(4, first=90).to_parquet(older / "validation-00000-of-00001.parquet")
    run_script(
        "train_ihdm.py", *arguments, "--dataset_name", older.parent, "--output_dir", tmp_path / "old",
        "--pretrained_model_name_or_path", tmp_path / "young" / "pipeline",
    )  # fmt: skip
    told, ages = fitted_to["covariates"][::2, 0], torch.tensor(np.array(people(32)["age"], np.float32))
    known = ages <= 65 + 4.5  # a tenth of the range beyond it
    assert 40 < known.sum() < 60
    torch.testing.assert_close(told[known], ages[known])
    assert told[~known].isnan().all()


def test_both_systems_learn_what_the_set_has(people_set, tiny_preset, vqgan_run, tmp_path):
    arguments = ("--config", tiny_preset, "--dataset_name", people_set, "--vqvae", vqgan_run / "best")
    run_script("train_ihdm.py", *arguments, "--max_train_steps", 2, "--output_dir", tmp_path / "ours")
    ours = VQIHDMPipeline.from_pretrained(tmp_path / "ours" / "pipeline")
    names = ["age", "sex", "cdr", "slice_level"]
    assert [covariate.name for covariate in ours.denoiser.known_covariates] == names
    given = {"age": 40, "slice_level": 0.5, "cdr": 1}
    assert ours(1, covariates=given).covariates["slice_level"] == [0.5]
    assert PILImage.open(tmp_path / "ours" / "pipeline" / "covariates.png").size == (8 * 34 - 2, 4 * 34 - 2)
    card = (tmp_path / "ours" / "pipeline" / "README.md").read_text()
    assert "- `sex`: F, M\n" in card and "- `slice_level`: 0.3 to 0.7\n" in card
    assert "asked for age, then sex, then cdr, then slice_level: a row each.](covariates.png)" in card

    size = ("--hidden_size", 16, "--num_hidden_layers", 1, "--num_attention_heads", 2, "--train_batch_size", 3)
    run_script(
        "train_baseline.py", "--model", "absorbing", *arguments[2:], *size, "--max_train_steps", 2,
        "--covariates", "sex", "--output_dir", tmp_path / "theirs",
    )  # fmt: skip
    theirs = AbsorbingDiffusionPipeline.from_pretrained(tmp_path / "theirs" / "pipeline")
    assert theirs(1, 2, covariates={"sex": "F"}).covariates == {"sex": ["F"]}


def test_without_covariates_the_network_is_as_before(people_set, tiny_preset, vqgan_run, tmp_path):
    run_script(
        "train_ihdm.py", "--config", tiny_preset, "--dataset_name", people_set, "--vqvae", vqgan_run / "best",
        "--max_train_steps", 1, "--covariates", "--output_dir", tmp_path,
    )  # fmt: skip
    denoiser = VQIHDMPipeline.from_pretrained(tmp_path / "pipeline").denoiser
    assert not (tmp_path / "pipeline" / "covariates.png").exists()
    assert denoiser.config.covariates == [] and not any("covariate" in name for name in denoiser.state_dict())
    assert denoiser.state_dict().keys() == tiny_denoiser(num_hidden_layers=1, neighbourhood_size=3).state_dict().keys()
