"""The benchmarks from the first training to the last line of their page, on tiny systems."""

import importlib
import json
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, build_template_set, refusal, run_script, tiny_vq_model
from evaluation_helpers import TinyExtractor
from PIL import Image

from vq_ihdm.errors import InputError
from vq_ihdm.evaluation.features import FeatureNetwork

TRANSFORMER = """{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, train_batch_size: 8,
  lr_warmup_steps: 0, learning_rate: 0.03"""
GAN = "{latent_dim: 4, train_batch_size: 4, num_validation_images: 4}"
PRESET = f"""
vqgan: {{block_out_channels: [8, 8, 8], layers_per_block: 1, latent_channels: 4, vq_embed_dim: 4, lr_warmup_steps: 0,
  num_vq_embeddings: 16, norm_num_groups: 4, perceptual: none, discriminator: patch, disc_channels: 8,
  train_batch_size: 8}}
ihdm: {TRANSFORMER}, sigma_max: 2, delta: 1, prior_rank: 8}}
baseline_absorbing: {TRANSFORMER}}}
baseline_ldm: {{block_out_channels: [8, 8], layers_per_block: 1, norm_num_groups: 4, train_batch_size: 8,
  learning_rate: 0.1, lr_warmup_steps: 0}}
baseline_pixel_ihdm: {{block_out_channels: [8, 8], layers_per_block: 1, norm_num_groups: 4, num_train_timesteps: 3,
  sigma_max: 8, prior: mixture, prior_rank: 8, train_batch_size: 4, num_validation_images: 4}}
baseline_wgan: {GAN}
baseline_alphawgan: {GAN}
baseline_vaegan: {GAN}
baseline_ccegan: {GAN}
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluated_set(tmp_path_factory) -> Path:
    """As `template_set`, with subjects enough for an evaluation: 5 to test on."""
    return build_template_set(tmp_path_factory.mktemp("data") / "evaluated32", num_subjects=34)


def run_here(command: list[str]) -> subprocess.CompletedProcess:
    """A train script in this process, as `subprocess.run` would in another: imports take longer than training."""
    run_script(*command[1:])
    return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def benchmark(tmp_path, evaluated_set, monkeypatch, capsys):
    """Run a benchmark with the tiny preset and a tiny feature network; what it printed, and its results."""
    preset = tmp_path / "tiny.yaml"
    preset.write_text(PRESET)
    network = FeatureNetwork(TinyExtractor(features_list=("16",)), cache=tmp_path / "cache")
    monkeypatch.setattr("vq_ihdm.evaluation.features.load_networks", lambda weights, device: [network])
    monkeypatch.setattr("vq_ihdm.evaluation.resampling.RESAMPLES", 10)  # not the intervals are tested here
    monkeypatch.setattr("vq_ihdm.evaluation.audit.TRIALS", 10)
    monkeypatch.setattr(subprocess, "run", run_here)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def run(script: str, *flags: object) -> tuple[str, Path]:
        flags = ("--config", preset, "--dataset_name", evaluated_set, "--num_images", 20, *flags)
        folders = ("--work_dir", tmp_path / "work", "--output_dir", tmp_path / "results")
        run_script(f"benchmarks/{script}", *flags, *folders)
        return capsys.readouterr().out, tmp_path / "results"

    return run


def test_table_1_has_every_system_and_goes_on_where_it_was_killed(benchmark, tmp_path):
    said, results = benchmark("table1.py", "--budget_images", 16)
    assert "every system trains for 16 images" in said
    rows = {row["name"]: row for row in json.loads((results / "results.json").read_text())}
    on_tokens = ["vq_ihdm", "vq_ihdm_published", "absorbing", "ldm", "ldm_10", "ldm_50"]
    assert list(rows) == [*on_tokens, "wgan", "alphawgan", "vaegan", "ccegan", "pixel_ihdm"]
    for name, row in rows.items():
        # At most one step more than asked for in each stage.
        assert 16 <= row["training_images"] < 16 + 24
        assert row["parameters"] > 0 and row["seconds_per_image"] > 0
        assert (row["figures"]["fid"]["ceiling"] is not None) == (name in on_tokens)
        assert row["figures"]["kid"]["generated"]["num_images"] == 20
        assert Image.open(results / f"{name}.png").size == (8 * 34 - 2, 2 * 34 - 2)
    fids = [row["figures"]["fid"]["generated"]["value"] for row in rows.values()]
    assert len(set(fids)) == len(fids)  # no two of them drew the same images
    assert rows["vq_ihdm"]["figures"]["fid"]["floor"] == rows["wgan"]["figures"]["fid"]["floor"]
    assert Image.open(results / "table2.png").size == (6 * 34 - 2, 32)
    page = (results / "README.md").read_text()
    assert "| 38.57 | 36 | 1.84 |" in page and "real training images (floor)" in page

    shutil.rmtree(tmp_path / "work" / "systems" / "wgan")
    for measured in ("ccegan", "absorbing", "vq_ihdm"):  # their trainings are not needed any more
        shutil.rmtree(tmp_path / "work" / measured)
    kept = (tmp_path / "work" / "systems" / "vq_ihdm" / "row.json").read_bytes()
    said, results = benchmark("table1.py", "--budget_images", 16)
    assert "WGAN: FID" in said and "CCE-GAN: FID" not in said
    assert not any((tmp_path / "work" / measured).exists() for measured in ("ccegan", "absorbing", "vq_ihdm"))
    assert Image.open(results / "table2.png").size == (6 * 34 - 2, 32)
    assert (tmp_path / "work" / "systems" / "vq_ihdm" / "row.json").read_bytes() == kept
    with pytest.raises(SystemExit, match="holds a run with --budget_images 16, this one has 60; name a new"):
        benchmark("table1.py", "--budget_images", 60)
    again = {row["name"]: row for row in json.loads((results / "results.json").read_text())}
    assert again["wgan"]["figures"] == rows["wgan"]["figures"]  # same weights, same seed, same figures


def test_table_1_gives_each_system_its_minutes(benchmark, evaluated_set, tmp_path):
    """A tokenizer has its share of a system's minutes, which a first step exceeds here."""
    table1 = importlib.import_module("table1")
    flags = ("--config", tmp_path / "tiny.yaml", "--dataset_name", evaluated_set, "--work_dir", tmp_path / "work")
    args = table1.build_parser().parse_args([*map(str, flags), "--budget_minutes", "0.0001"])
    table1.train_all([system for system in table1.SYSTEMS if system.name in ("vq_ihdm", "wgan")], args)
    assert sorted(folder.name for folder in (tmp_path / "work").iterdir()) == ["vq_ihdm", "vqgan", "wgan"]
    for stage, share in (("vqgan", 0.6), ("vq_ihdm", 0.4), ("wgan", 1)):
        config = json.loads((tmp_path / "work" / stage / "config.json").read_text())
        assert config["max_train_minutes"] == pytest.approx(0.0001 * share)
        assert table1.last_metrics(tmp_path / "work" / stage)["step"] == 1


def test_one_step_and_its_ablations(benchmark, vqgan_run):
    flags = ("--vqvae", vqgan_run / "best", "--train_steps", 24, "--trainings", "default", "absorbing", "ldm")
    _, results = benchmark("one_step_vs_absorbing.py", *flags, "--training_seeds", 0, 1, "--ablations")
    content = json.loads((results / "results.json").read_text())
    rows = {(row["label"], row["num_inference_steps"], row["training_seed"]): row for row in content}
    assert {steps for label, steps, _ in rows if label == "absorbing diffusion"} == {1, 10, 50, 100, 200, 256}
    assert {steps for label, steps, _ in rows if label == "default"} == {1, 2, 4, 8}
    assert {steps for label, steps, _ in rows if label == "latent diffusion"} == {5, 10, 50}
    assert {row["training"] for row in content if row["training_seed"] == 1} == {"default", "absorbing", "ldm"}
    assert {row["training_steps"] for row in content if row["training"] in ("default", "paper", "sigma3")} == {24}
    assert all(row["training_steps"] >= 1 and row["training_seconds"] > 0 for row in content)
    figures = [row["figures"] for row in rows.values()]
    assert all(f["kid"]["floor"] == figures[0]["kid"]["floor"] for f in figures)  # one reference for all
    # Every ablation and every training reaches its system: no two of them drew the same images, but for the priors of
    # several Gaussians, of which so few slices leave one.
    drawn = {}
    for system, row in rows.items():
        if "Gaussians" not in row["label"]:
            drawn.setdefault(row["figures"]["fid"]["generated"]["value"], []).append(system)
    assert [systems for systems in drawn.values() if len(systems) > 1] == []
    for name in ("quality_against_cost.png", "first_samples.png"):
        Image.open(results / name).verify()
    page = (results / "README.md").read_text()
    systems = {(label, steps) for label, steps, _ in rows}
    assert page.count("\n| ") == 3 * len(systems) + 1  # the table, and ours in one step and in eight beside the others
    words = ("better", "worse", "cannot be told apart")
    of_several, of_one = (sum(page.count(f"| {word}{told} |") for word in words) for told in ("", " (one training)"))
    assert of_several + of_one == 2 * (len(systems) - 1) and of_several == 2 * 6  # of ours and its peers

    _, results = benchmark("one_step_vs_absorbing.py", *flags, "--training_seeds", 0, 1, "--best_only")
    best = json.loads((results / "results.json").read_text())
    systems = [("default, temperature 0.8", 1), ("absorbing diffusion, temperature 0.8", 256), ("latent diffusion", 10)]
    keys = [(row["label"], row["num_inference_steps"], row["training_seed"]) for row in best]
    assert sorted(keys) == sorted((*system, seed) for system in systems for seed in (0, 1))
    for key, row in zip(keys, best, strict=True):  # measured above; the clock alone was asked again
        assert row | {"seconds": None} == rows[key] | {"seconds": None}
    page = (results / "README.md").read_text()
    assert "--training_seeds 0 1 --best_only" in page and "latent diffusion in 10" in page.split("Means of 2 ")[1]


def test_more_trainings_go_into_the_folder_of_fewer_and_no_others(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    check_settings, data, vqvae = (
        importlib.import_module("common").check_settings,
        tmp_path / "data",
        tmp_path / "vqvae",
    )
    data.mkdir()
    (data / "vq_ihdm.json").write_text('{"digest": "first"}')
    tiny_vq_model().save_pretrained(vqvae)

    def check(train_steps: int = 5, training_seeds: tuple = (0,)) -> None:
        what = {"dataset_name": str(data), "vqvae": str(vqvae), "work_dir": tmp_path / "work"}
        check_settings(Namespace(train_steps=train_steps, training_seeds=training_seeds, **what))

    check()
    check(training_seeds=(0, 1, 2))
    with pytest.raises(InputError, match="holds a run with --train_steps 5, this one has 6"):
        check(train_steps=6)
    (data / "vq_ihdm.json").write_text('{"digest": "second"}')
    with pytest.raises(InputError, match="dataset_name's digest first, this one has second"):
        check()
    (data / "vq_ihdm.json").write_text('{"digest": "first"}')
    tiny_vq_model(seed=1).save_pretrained(vqvae)  # trained anew, in the place of the old one
    with pytest.raises(InputError, match="vqvae's weights"):
        check()


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("table1", ("--dataset_name", "missing", "--budget_images", 16)),
        ("one_step_vs_absorbing", ("--dataset_name", "missing", "--vqvae", "missing")),
        ("search", ("--dataset_name", "missing", "--vqvae", "missing")),
        ("speed", ("--pipeline", "missing", "--parts", "blur")),
    ],
)
def test_a_folder_of_something_else_is_refused_before_anything_is_read(script, flags, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    (tmp_path / "README.md").write_text("# Results of another benchmark")
    said = refusal(run_script, f"benchmarks/{script}.py", *flags, "--output_dir", tmp_path)
    assert f"{tmp_path} exists and is no earlier output" in said
    assert (tmp_path / "README.md").read_text() == "# Results of another benchmark"


def test_settings_are_searched_on_validation_by_equally_many_trials(benchmark, vqgan_run, tmp_path):
    flags = ("--vqvae", vqgan_run / "best", "--search_steps", 4, "--train_steps", 8, "--learning_rates", 0.001, 0.003)
    # Of fewer images no code may tell a solver that has nearly converged in 35 steps from one of 50.
    _, results = benchmark("search.py", *flags, "--num_images", 80)
    rows = json.loads((results / "results.json").read_text())
    for system in ("default", "absorbing", "ldm"):
        trials = [row for row in rows if row["system"] == system]
        tried, final = trials[:2], trials[2:]
        assert [(row["learning_rate"], row["train_steps"]) for row in tried] == [(0.001, 4), (0.003, 4)]
        best = min(tried, key=lambda row: row["second_stage_kid"]["value"])
        assert {(row["learning_rate"], row["train_steps"]) for row in final} == {(best["learning_rate"], 8)}
        assert len(final) == 6 and len({json.dumps(row["sampling"]) for row in final}) == 6
        assert len({row["second_stage_kid"]["value"] for row in trials}) == 8  # every rate and every way reached it
        folder = tmp_path / "work" / f"{system}_0.003_4"
        assert json.loads((folder / "config.json").read_text())["learning_rate"] == 0.003
    page = (results / "README.md").read_text()
    assert page.count("\n| ") == 1 + len(rows) and page.count("- Best of") == 3 and "slices of validation" in page


def head(*shape: int) -> np.ndarray:
    """A bright ball in a volume, darker towards its rim."""
    distance = np.sqrt(sum((axis / size - 0.5) ** 2 for axis, size in zip(np.indices(shape), shape, strict=True)))
    return ((1000 - 1000 * distance) * (distance < 0.4)).astype(np.int16)


def test_speed_is_measured_beside_peers_and_stored(
    every_kind_folder, every_kind_onnx_folder, template_set, tiny_preset, trunk, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -60
    nib.save(nib.Nifti1Image(head(60, 60, 60), affine), tmp_path / "head.nii.gz")
    run_script(
        "benchmarks/speed.py", "--pipeline", every_kind_folder, "--batch_sizes", 1, 3, "--threads", 1, "--repeats", 1,
        "--volumes", tmp_path, "--num_features", 60, "--onnx", every_kind_onnx_folder, "--config", tiny_preset,
        "--dataset_name", template_set, "--perceptual_weights", trunk,
        "--parts", "sampling", "training", "processes", "blur", "data", "evaluation", "--processes", 2, "--steps", 2,
        "--output_dir", tmp_path / "speed",
    )  # fmt: skip
    run_script("benchmarks/speed.py", "--pipeline", every_kind_folder, "--parts", "blur", "--repeats", 2,
               "--output_dir", tmp_path / "speed")  # fmt: skip
    parts = json.loads((tmp_path / "speed" / "results.json").read_text())["parts"]
    assert {part: content["repeats"] for part, content in parts.items()} == {
        "sampling": 1, "training": 1, "processes": 1, "blur": 2, "data": 1, "evaluation": 1
    }  # fmt: skip
    rows = [row for content in parts.values() for row in content["rows"]]
    for row in rows:
        low, high = row["quartiles"]
        assert 0 < low <= row["seconds"] <= high
    ours = {row["setting"]: row for row in rows if row["name"].startswith("VQIHDM") and row["part"] == "sampling"}
    assert ours["batch 3, threads 1"]["flops"] == pytest.approx(3 * ours["batch 1, threads 1"]["flops"])
    assert all(row["at_best"] > 0 for row in rows if row["part"] == "sampling")
    names = {row["name"] for row in rows}
    assert {"exported, ONNX Runtime", "latent diffusion, 20 steps", "absorbing diffusion, 256 steps"} < names
    steps = [(row["setting"], row["name"]) for row in rows if row["part"] == "training"]
    assert len(set(steps)) == len(steps) == 4 * 3  # four settings; the script, the bare loop, the published step
    trainings = [(row["setting"].split(",")[0], row["name"]) for row in rows if row["part"] == "processes"]
    assert trainings == [(f"train_{section}.py", "2 processes") for section in ("vqgan", "ihdm")]
    firsts = [row["ratio"] for row in rows if row["name"] in ("networks alone", "heat.blur", "1 threads", "fidelity")]
    assert set(firsts) == {1.0}
    page = (tmp_path / "speed" / "README.md").read_text()
    assert page.count("\n| ") == len(rows) + len({row["part"] for row in rows})
    Image.open(tmp_path / "speed" / "sampling.png").verify()
