"""The model card says what is known, where it came from, and nothing about a machine or a person."""

import argparse
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import run_script, tiny_vq_ihdm
from datasets import DatasetDict
from hub_fixtures import DATA, STAGE, evaluate, record
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from vq_ihdm.data.images import load_slices
from vq_ihdm.errors import InputError
from vq_ihdm.hub.audit import audit_failures
from vq_ihdm.hub.checks import failed_checks
from vq_ihdm.hub.figures import estimate
from vq_ihdm.hub.model_card import describe_earlier, describe_terms, model_card, write_model_card
from vq_ihdm.hub.record import (
    METHODS,
    UNKNOWN,
    data_facts,
    of_stage,
    read_record,
    stage_record,
    under_all_terms,
    write_record,
)
from vq_ihdm.training.describe import save_trained_pipeline


@pytest.fixture
def model(pipeline_folder: Path, tmp_path: Path) -> Path:
    return record(Path(shutil.copytree(pipeline_folder, tmp_path / "model")))


def section(card: ModelCard, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card.text, re.DOTALL | re.MULTILINE)[1]


def test_the_card_states_the_records_facts(model: Path):
    card = model_card(model)
    training, data = section(card, "Training"), section(card, "Data and terms")
    for fact in ("1,000", "32,000", "1 h 30 min", "a CPU", "3.21", "`learning_rate` 0.001"):
        assert fact in training
    assert "| train | 20 | 80 |" in data and "OASIS-1" in data
    assert card.data.license == "odbl" and card.data.library_name == "diffusers"
    assert "Not for diagnosis" in section(card, "Use")


def test_what_is_not_known_is_said_not_invented(model: Path):
    card = model_card(model)
    assert "Not evaluated yet" in section(card, "Evaluation") and "Not done yet" in section(card, "Memorisation audit")
    assert card.data.eval_results is None
    assert "More Information Needed" not in card.content and "None" not in card.content


def test_figures_reach_table_and_metadata_with_n_floor_and_interval(model: Path):
    write_model_card(evaluate(model), "someone/brains")
    card = ModelCard.load(model / "README.md")
    (row,) = re.findall(r"^\| KID .*$", card.text, re.MULTILINE)
    assert "0.0512 [0.0480, 0.0550]" in row and "0.0012" in row and "| 500 |" in row
    assert "Inception Score" not in card.text and "(evaluation/report.md)" in card.text
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "brains"
    figures = {result.metric_type: result.metric_value for result in results}
    assert figures == {"kid": 0.0512, "nearest_ratio": 1.0, "copy_rate": 0.0}
    assert all(result.task_type == "unconditional-image-generation" for result in results)


def test_a_box_of_five_lines_says_what_matters(model: Path):
    lines = [line.strip() for line in model_card(evaluate(model)).text.splitlines() if line.startswith(">")]
    what, how_good, private, purpose, not_for = lines
    assert "20 people (OASIS-1)" in what and "32x32 pixels" in what
    assert "KID 0.0512 (real images: 0.0012)" in how_good
    assert "audit passed" in private and "research" in purpose and "diagnosis" in not_for
    evaluate(model, ratio=0.5)
    assert "audit failed" in model_card(model).text
    (model / "evaluation" / "report.json").unlink()
    text = model_card(model).text
    assert "> **How good**: not evaluated yet" in text and "audit not done yet" in text


def test_preparation_compute_citation_and_contact_are_told(model: Path):
    card = model_card(record(model, preparation={"slices": "middle:40"}))
    data = section(card, "Data and terms")
    assert "slices: middle:40" in data and "32x32 pixels (height x width) of 1x1 mm" in data
    assert "Compute: 1 h 30 min" in section(card, "Training")
    assert section(card, "Citation").count("@") == 4 and "Community" in section(card, "Contact")


@pytest.mark.parametrize(
    ("value", "interval", "shown"),
    [
        (40.71622, (38.7134, 42.719), "40.7 [38.7, 42.7]"),
        (0.033661, (0.03106, 0.03627), "0.0337 [0.0311, 0.0363]"),
        (0.0, (0.0, 0.0), "0.000 [0.000, 0.000]"),
        (812.3, (700.0, 950.0), "812 [700, 950]"),
        (0.5, (0.4999999, 0.5000001), "0.5000 [0.5000, 0.5000]"),
    ],
)
def test_no_more_digits_than_the_interval_supports(value: float, interval: tuple[float, float], shown: str):
    assert estimate({"value": value, "interval": interval}) == shown


@pytest.mark.parametrize(
    ("ratio", "copies", "failed"),
    [
        (0.5, 0, True),
        (0.9, 0, True),
        (0.99, 0, False),
        (1.01, 0, False),
        (1.2, 0, True),
        (1, 0.02, True),
        (1, 0.002, False),
    ],
)
def test_the_card_tells_the_verdict_of_the_audit_and_its_power(model: Path, ratio: float, copies: float, failed: bool):
    evaluate(model, ratio, copies)
    assert bool(audit_failures(json.loads((model / "evaluation" / "report.json").read_text()))) == failed
    audit = section(model_card(model), "Memorisation audit")
    assert ("**Failed.**" if failed else "**Passed**") in audit and "95% at 2%" in audit


def test_a_report_of_an_earlier_version_is_no_evidence(model: Path):
    evaluate(model)
    file = model / "evaluation" / "report.json"
    report = json.loads(file.read_text())
    del report["audit"]
    file.write_text(json.dumps(report))
    assert "run evaluate.py again" in section(model_card(model), "Memorisation audit")
    assert "failed_audit" in failed_checks(model)


def test_figures_of_other_data_are_not_the_models(model: Path):
    evaluate(model)
    assert "KID" in section(model_card(model), "Evaluation")
    card = model_card(record(model, source="IXI"))
    assert "Not evaluated yet" in section(card, "Evaluation") and card.data.eval_results is None
    assert "audit not done yet" in card.text


def test_a_licence_that_forbids_redistribution_is_stated(model: Path):
    card = model_card(record(model, source="ADNI", licence="other", redistribution=False))
    assert "must not be redistributed" in section(card, "Data and terms")
    assert "ADNI data use agreement" in section(card, "Data and terms")


def test_own_scans_under_a_licence_do_not_count_as_confidential(model: Path):
    card = model_card(record(model, source="own scans", licence="cc-by-4.0", redistribution=True))
    assert "under cc-by-4.0" in section(card, "Data and terms") and "confidential" not in card.text


def test_the_splits_of_a_set_that_was_not_built_here_are_not_vouched_for(model: Path):
    assert "no subject, as the set names them, is in two splits" in section(model_card(model), "Data and terms")
    write_record(model, UNKNOWN | {"splits": DATA["splits"]}, [STAGE])
    data = section(model_card(model), "Data and terms")
    assert "no subject, as the set names them, is in two splits" not in data and "not known" in data


@pytest.mark.parametrize(
    ("flips", "said"),
    [
        ([True, True], "`train_ihdm.py` and `train_vqgan.py` mirrored slices"),
        ([False, True], "`train_ihdm.py` mirrored slices"),
        ([False, False], None),
    ],
)
def test_slices_were_mirrored_where_the_record_says_so(model: Path, flips: list[bool], said: str | None):
    stages = [
        STAGE | {"script": script, "settings": {"random_flip": flip}}
        for script, flip in zip(("train_vqgan.py", "train_ihdm.py"), flips, strict=True)
    ]
    write_record(model, DATA, stages)
    data = section(model_card(model), "Data and terms")
    assert said in data if said else "mirrored" not in data


def test_the_authors_notes_are_quoted(model: Path):
    (model / "notes.md").write_text("Training was cut short.\n")
    assert section(model_card(model), "Notes").strip() == "Training was cut short."


def test_the_examples_run(model: Path):
    first, second = re.findall(r"```python\n(.*?)```", model_card(model, str(model)).text, re.DOTALL)
    names: dict = {}
    exec(first, names)
    assert len(names["images"]) == 8 and names["images"][0].mode == "L"
    exec(second, names)
    assert type(names["pipe"]).__name__ == "VQIHDMPipeline"


def test_no_path_and_no_name_enters_the_record():
    secrets = {
        "dataset_name": "/home/jane/adni",
        "output_dir": "runs/jane",
        "hub_model_id": "jane/x",
        "new_flag": "jane",
    }
    args = argparse.Namespace(
        **secrets, **dict.fromkeys(METHODS, "method"), seed=1, train_batch_size=4, gradient_accumulation_steps=2
    )
    args.changed_on_resume = [
        {"from_step": 5, "setting": setting, "before": before, "after": after}
        for setting, before, after in [
            ("train_batch_size", 2, 4),
            ("dataset_name", "/home/jane/old", "/home/jane/adni"),
        ]
    ]
    stage = stage_record(args, {"loss": 1.5, "step": 10, "images_seen": 80, "seconds": 3.0}, DATA)
    assert stage["data"] == {name: DATA[name] for name in ("source", "licence", "redistribution")}
    assert "jane" not in json.dumps(stage)
    assert stage["changed_on_resume"] == args.changed_on_resume[:1]
    assert stage["settings"] == dict.fromkeys(METHODS, "method") | {
        "seed": 1, "train_batch_size": 4, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    assert stage["images_seen"] == 80 and stage["held_out"] == {"loss": 1.5}


def test_a_model_of_unknown_origin_gets_no_card(pipeline_folder: Path):
    with pytest.raises(InputError, match=r"training\.json"):
        model_card(pipeline_folder)


def arguments(tmp_path: Path, **given) -> argparse.Namespace:
    """Of a training into a folder of its own."""
    usual = {"dataset_name": None, "resolution": None, "seed": 0, "push_to_hub": False}
    return argparse.Namespace(output_dir=str(tmp_path / "run"), **usual | given)


def saved(args: argparse.Namespace, splits: DatasetDict) -> Path:
    """What `save_trained_pipeline` makes of a training that ended after a minute."""
    pipeline = tiny_vq_ihdm()
    for kept in (Path(args.output_dir) / "best", Path(args.output_dir) / "last"):
        pipeline.denoiser.save_pretrained(kept)
        (kept / "metrics.json").write_text(json.dumps({"step": 1, "images_seen": 4, "seconds": 60.0}))
    save_trained_pipeline(pipeline, args, splits)
    return Path(args.output_dir) / "pipeline"


@pytest.mark.parametrize("redistribution", [True, False])
def test_no_picture_of_a_scan_lies_beside_the_weights(
    pipeline_folder: Path, template_set: Path, tmp_path: Path, redistribution: bool
):
    data = Path(shutil.copytree(template_set, tmp_path / "data"))
    facts = json.loads((data / "vq_ihdm.json").read_text()) | {"redistribution": redistribution}
    (data / "vq_ihdm.json").write_text(json.dumps(facts))
    args = arguments(tmp_path, dataset_name=str(data), vqvae=str(pipeline_folder))
    model = saved(args, load_slices(str(data)))
    assert [file.name for file in model.glob("*.png")] == ["samples.png"]
    assert (model / "audit_index.safetensors").is_file() == redistribution
    found = read_record(model)["data"]
    assert found["splits"]["train"] == {"slices": 32, "subjects": 8} and found["source"] == "MNI152 template"
    assert str(tmp_path) not in (model / "README.md").read_text() + (model / "training.json").read_text()


def test_the_record_of_the_tokenizer_comes_along(pipeline_folder: Path, template_set: Path, tmp_path: Path):
    vqvae = tmp_path / "vqvae"
    tiny_vq_ihdm().vqvae.save_pretrained(vqvae)
    trained = STAGE | {"script": "train_vqgan.py", "settings": {"num_vq_embeddings": 16}}
    write_record(vqvae, DATA, [trained, STAGE])  # as that of a pipeline, whose denoiser is not its tokenizer's
    write_model_card(vqvae)
    assert "VQModel.from_pretrained" in (vqvae / "README.md").read_text()
    args = arguments(tmp_path, vqvae=str(vqvae))
    model = saved(args, load_slices(str(template_set)))
    first, second = read_record(model)["stages"]
    assert first == trained | {"data": of_stage(DATA)} and second["step"] == 1
    assert read_record(model)["data"]["redistribution"] is False  # a plain folder of images counts as confidential
    data = section(model_card(model), "Data and terms")
    assert f"Earlier trainings learnt from other data: {DATA['source']}" in data


def test_a_model_is_under_the_terms_of_all_it_learnt_from():
    free, restricted = DATA, DATA | {"source": "ADNI", "licence": "other", "redistribution": False}
    stages = [{"data": of_stage(restricted)}, {"data": of_stage(free)}]
    assert under_all_terms(free, stages) == free | {"licence": "other", "redistribution": False}
    assert under_all_terms(free, stages[1:]) == free
    terms = describe_terms({"data": free, "stages": stages})
    assert all(describe_terms({"data": data, "stages": []}) in terms for data in (free, restricted))


def test_another_selection_of_the_same_people_is_told():
    def told(*digests):
        datas = [DATA | {"digest": digest} if digest else DATA for digest in digests]
        return describe_earlier({"data": datas[-1], "stages": [{"data": of_stage(data)} for data in datas]})

    assert "people held out here may have been seen" in told("a", "b")
    assert told("a", "a") == told(None, "b") == told("b", None) == told("a", None, "a") == ""


def test_the_size_that_images_were_brought_to(template_set: Path):
    built, halved = (data_facts(str(template_set), load_slices(str(template_set), resolution=r), r) for r in (None, 16))
    assert halved["image_size"] == [16, 16] and halved["spacing_mm"] == [2 * side for side in built["spacing_mm"]]


def test_the_trainings_of_an_earlier_denoiser_come_along_each_once(model: Path, template_set: Path, tmp_path: Path):
    tokenizer = STAGE | {"script": "train_vqgan.py", "settings": {"num_vq_embeddings": 16}}
    write_record(model, DATA, [tokenizer, STAGE])
    for denoiser in (model, model / "denoiser"):
        args = arguments(tmp_path / denoiser.name, vqvae=str(model), pretrained_model_name_or_path=str(denoiser))
        learnt_on = saved(args, load_slices(str(template_set)))
        *earlier, last = read_record(learnt_on)["stages"]
        assert earlier == [stage | {"data": of_stage(DATA)} for stage in (tokenizer, STAGE)] and last["seconds"] == 60
    assert "Compute: 3 h 1 min" in section(model_card(learnt_on), "Training")


def test_the_command_writes_the_card_again(model: Path, capsys: pytest.CaptureFixture):
    evaluate(model)
    run_script("src/vq_ihdm/__main__.py", "card", model)
    assert "KID" in (model / "README.md").read_text()
    assert DATA["source"] in (model / "README.md").read_text()
