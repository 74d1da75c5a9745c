"""What may be published, and which option overrules a refusal."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, refusal, run_script, tiny_vq_ihdm, tiny_vq_model
from hub_fixtures import DATA, evaluate, fitted_prior, memorising, record, restricted, unevaluated

from vq_ihdm import GANPipeline, VQIHDMPipeline
from vq_ihdm.baselines.stacks import LatentDecoder
from vq_ihdm.data.sources import OWN
from vq_ihdm.errors import InputError
from vq_ihdm.hub.checks import failed_checks, refuse
from vq_ihdm.hub.evaluated_data import is_of
from vq_ihdm.hub.model_card import model_card
from vq_ihdm.hub.publishing import files_of, publish, publish_space
from vq_ihdm.hub.record import read_record
from vq_ihdm.pipelines.saving import upload


@pytest.fixture
def model(pipeline_folder: Path, tmp_path: Path) -> Path:
    """A pipeline's folder with everything publishing asks for."""
    return evaluate(record(Path(shutil.copytree(pipeline_folder, tmp_path / "model"))))


def without(entry: str, folder: Path) -> None:
    """Make the evaluation one of an earlier version, which did not tell its data, or its weights."""
    file = folder / "evaluation" / "report.json"
    report = json.loads(file.read_text())
    del report[entry]
    file.write_text(json.dumps(report))


def train_on(folder: Path) -> VQIHDMPipeline:
    """Save other weights into a pipeline's folder, as its owner would."""
    pipe = VQIHDMPipeline.from_pretrained(folder)
    pipe.denoiser.head.bias.data += 1
    pipe.save_pretrained(folder)
    return pipe


def with_other_weights(folder: Path) -> None:
    """Make the evaluation one of earlier weights than those of the record."""
    train_on(folder)
    record(folder)


def with_other_defaults(folder: Path, **defaults: float) -> None:
    """Let the scheduler draw in another way than it did for the evaluation, which took one step."""
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | defaults))


def with_picture(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"pixels")
    restricted(folder)


def with_prior(folder: Path, kind: str) -> None:
    fitted_prior(kind).save_pretrained(folder / "prior")
    restricted(folder)


@pytest.mark.parametrize(
    ("change", "failed_check"),
    [
        (lambda folder: None, None),
        (restricted, None),  # the weights may be published, the images not
        (lambda folder: with_picture(folder, "samples.png"), None),
        (lambda folder: with_picture(folder, "reconstructions.png"), "restricted_images"),
        (lambda folder: with_picture(folder, "evaluation/nearest.png"), "restricted_images"),
        (lambda folder: with_picture(folder, "audit_index.safetensors"), "restricted_images"),
        (lambda folder: with_prior(folder, "mixture"), None),
        (lambda folder: with_prior(folder, "slice"), "restricted_images"),
        (lambda folder: with_prior(folder, "images"), "restricted_images"),
        (unevaluated, "unevaluated"),
        (lambda folder: record(folder, source="IXI"), "unevaluated"),  # its report is of other data than its record
        (
            lambda folder: record(folder, splits=DATA["splits"] | {"train": {"slices": 84, "subjects": 21}}),
            "unevaluated",
        ),
        (lambda folder: record(folder, splits=DATA["splits"] | {"test": {"slices": 16, "subjects": 4}}), None),
        (lambda folder: without("data", folder), "unevaluated"),
        (lambda folder: without("weights", folder), "unevaluated"),
        (with_other_weights, "unevaluated"),
        (lambda folder: record(folder, digest="of another set with the same counts"), None),  # the report has none
        (lambda folder: with_other_defaults(folder, num_inference_steps=1, delta=0.3), None),
        (lambda folder: with_other_defaults(folder, num_inference_steps=7), "unevaluated"),
        (memorising, "failed_audit"),
    ],
)
def test_failed_checks_name_the_option_that_overrules_them(model: Path, change, failed_check: str | None):
    change(model)
    assert list(failed_checks(model)) == ([failed_check] if failed_check else [])
    if failed_check:
        with pytest.raises(InputError, match=f"--allow_{failed_check}"):
            refuse(model, [])
        with pytest.raises(InputError):
            refuse(model, {"restricted_images", "unevaluated", "failed_audit"} - {failed_check})
        refuse(model, [failed_check])


@pytest.mark.parametrize(
    ("change", "option"),
    [
        (unevaluated, "unevaluated"),
        (lambda folder: record(folder, source="IXI"), "unevaluated"),
        (memorising, "failed_audit"),
        (lambda folder: with_prior(folder, "slice"), "restricted_images"),
    ],
)
def test_push_to_hub_refuses_what_publishing_refuses(model: Path, tmp_path: Path, change, option: str):
    """Before the Hub is asked, whoever may see the repository."""
    change(model)
    pipe = VQIHDMPipeline.from_pretrained(model)
    pipe.prior.allow_saving_images = True
    with pytest.raises(InputError, match=f"this pipeline .*publish.py --allow_{option}"):
        pipe.push_to_hub("account/name", private=False)
    with pytest.raises(InputError, match=f"saved .*publish.py --allow_{option}"):
        pipe.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="account/name")


def test_records_of_other_weights_are_not_the_models_own(model: Path):
    """Weights that are saved into their own folder find card, record and report of the earlier ones beside them."""
    VQIHDMPipeline.from_pretrained(model).save_pretrained(model)
    assert failed_checks(model) == {}
    pipe = train_on(model)
    for ask in (failed_checks, model_card, lambda folder: publish(folder, "account/name")):
        with pytest.raises(InputError, match=r"training\.json of its weights"):
            ask(model)
    for pipeline in (pipe, tiny_vq_ihdm()):
        with pytest.raises(InputError, match=r"this pipeline is neither a model with the training\.json"):
            pipeline.push_to_hub("account/name")


def test_a_record_of_an_earlier_version_counts(model: Path):
    """It does not tell its weights; what was trained then could never be published, evaluated or not."""
    content = json.loads((model / "training.json").read_text())
    del content["weights"]
    (model / "training.json").write_text(json.dumps(content))
    assert failed_checks(model) == {}
    unevaluated(model)
    assert list(failed_checks(model)) == ["unevaluated"]


def test_splits_that_were_measured_together_are_of_the_data_they_are_in():
    def measured(name: str, slices: int, subjects: int) -> dict:
        return {"source": "OASIS-1", "splits": {name: {"slices": slices, "subjects": subjects}}}

    data = DATA | {"splits": DATA["splits"] | {"test": {"slices": 20, "subjects": 5}}}
    assert is_of(measured("validation+test", 36, 9), data) and is_of(measured("test", 20, 5), data)
    assert not is_of(measured("validation+test", 36, 8), data) and not is_of(measured("other", 20, 5), data)
    split_otherwise = measured("test", 20, 5) | {"digest": "b"}
    assert is_of(split_otherwise, data) and is_of(split_otherwise, data | {"digest": "b"})
    assert not is_of(split_otherwise, data | {"digest": "a"})


def test_only_what_the_package_writes_is_published(model: Path, tmp_path: Path):
    (model / "samples.png").write_bytes(b"pixels")
    own = set(files_of(model))
    assert own >= {"model_index.json", "pipeline_vq_ihdm.py", "samples.png", "training.json", "evaluation/report.json"}
    assert own >= {"denoiser/denoiser.py", "denoiser/model.safetensors", "scheduler/scheduler_config.json"}
    assert own == {file.relative_to(model).as_posix() for file in model.rglob("*") if file.is_file()}
    left_there = (
        "patient.png", "scans/patient.png", "evaluation/patient.png", "subjects.json", "notes_on_patients.md", "my.py",
        "prior/subjects.json", ".cache/huggingface/download.json", ".git/config.json", "vqvae/._model.safetensors",
    )  # fmt: skip
    for name in left_there:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"secret")
    restricted(model)
    assert set(files_of(model)) == own and failed_checks(model) == {}

    tokenizer = tmp_path / "tokenizer"
    tiny_vq_model().save_pretrained(tokenizer)
    (record(tokenizer) / "subjects.json").write_text("secret")
    assert set(files_of(tokenizer)) == {"config.json", "diffusion_pytorch_model.safetensors", "training.json"}


def test_a_dry_run_lists_what_would_be_uploaded_and_asks_no_hub(model: Path, template_set: Path, capsys):
    for folder in (model, template_set):
        run_script("publish.py", folder, "--repo_id", "a/b", "--dry_run")
        lines = capsys.readouterr().out.splitlines()
        assert {line.split()[-1] for line in lines} == {*files_of(folder), "README.md", "all"}
        sizes = [float(line.split()[0]) for line in lines]
        assert sizes[-1] == pytest.approx(sum(sizes[:-1]), abs=0.001 * len(sizes))
    space = publish_space(ROOT, model, "a/b", dry_run=True)
    assert "app.py" in space and "checkpoints/vq-ihdm-oasis-fine/model_index.json" in space
    unevaluated(model)
    with pytest.raises(InputError, match="--allow_unevaluated"):
        publish(model, "a/b", dry_run=True)


def test_images_that_must_not_be_passed_on_are_not_published(template_set: Path, tmp_path: Path):
    assert failed_checks(template_set) == {}
    without_card = Path(shutil.copytree(template_set, tmp_path / "without_card"))
    (without_card / "README.md").unlink()
    with pytest.raises(InputError, match=r"has lost its README\.md"):
        publish(without_card, "account/name")
    data = Path(shutil.copytree(template_set, tmp_path / "data"))
    facts = json.loads((data / "vq_ihdm.json").read_text())
    for source, sentence in (
        ("ADNI", r"ADNI, which must not be passed on; --allow_restricted_images"),  # whose terms no flag changes
        (OWN.name, r"own scans, which .* \(if they may, .* --license\); --allow_restricted_images"),
    ):
        (data / "vq_ihdm.json").write_text(json.dumps(facts | {"source": source, "redistribution": False}))
        with pytest.raises(InputError, match=sentence):
            refuse(data, [])


@pytest.mark.parametrize("name", ["training.json", "evaluation/report.json", "model_index.json", "prior/config.json"])
def test_a_damaged_file_is_named(model: Path, name: str):
    restricted(model)
    (model / name).write_text('{"data": ')
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        publish(model, "name")
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        upload(model, "name", True, None, "message")


def test_damaged_facts_of_a_data_set_are_named(tmp_path: Path):
    (tmp_path / "vq_ihdm.json").write_text("{")
    with pytest.raises(InputError, match="vq_ihdm.json cannot be read"):
        refuse(tmp_path, [])


@pytest.mark.parametrize("typo", ["typo", "runs/typo", "runs/ihdm/typo"])
def test_a_folder_that_is_not_there_is_told_in_a_sentence(tmp_path: Path, typo: str):
    """Its name could be that of a repository, of which the Hub is not asked."""
    said = [
        refusal(run_script, ROOT / "publish.py", typo, "--repo_id", "name", folder=tmp_path),
        refusal(run_script, ROOT / "src/vq_ihdm/__main__.py", "card", typo, folder=tmp_path),
    ]
    assert said == [f"error: {typo} is no folder; name one that holds a model or a built data set"] * 2
    assert not any(tmp_path.iterdir())


def test_a_space_is_made_of_nothing_that_the_page_could_not_draw_from(template_set: Path, tmp_path: Path):
    gan, tokenizer = tmp_path / "gan", tmp_path / "tokenizer"
    GANPipeline(LatentDecoder(32, 32, latent_dim=8).eval()).save_pretrained(gan)
    tiny_vq_model().save_pretrained(tokenizer)
    for folder in (template_set, evaluate(record(gan)), record(tokenizer), tmp_path / "typo"):
        with pytest.raises(InputError, match=f"{folder.name} holds no VQIHDMPipeline"):
            publish_space(ROOT, folder, "name")


def test_a_path_that_can_be_no_repository_is_told_in_a_sentence():
    with pytest.raises(InputError, match="^runs/ihdm/typo is no folder, and no repository"):
        read_record("runs/ihdm/typo")


def test_a_folder_of_unknown_origin_is_refused(pipeline_folder: Path):
    with pytest.raises(InputError, match="neither a model"):
        refuse(pipeline_folder, [])
