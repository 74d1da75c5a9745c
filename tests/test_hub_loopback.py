"""Publishing to, and loading from, a Hub on loopback."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import HEIGHT, NUM_CODES, ROOT, SHARD_FLAGS, WIDTH, tiny_vq_ihdm, tiny_vq_model
from diffusers import DiffusionPipeline
from hub_client import HubClient, RemoteError
from hub_fixtures import evaluate, fitted_prior, memorising, record, unevaluated
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard, SpaceCard

from vq_ihdm import AbsorbingDiffusionPipeline
from vq_ihdm.baselines.absorbing import AbsorbingDenoiser, AbsorbingDenoiserConfig
from vq_ihdm.data.images import load_slices
from vq_ihdm.hub.audit_index import write_audit_index
from vq_ihdm.hub.publishing import files_of
from vq_ihdm.synthetic.provenance import DESCRIPTION

pytestmark = pytest.mark.slow

WITH_PACKAGE = "from vq_ihdm import load_pipeline; pipe = load_pipeline({!r})"
WITHOUT_PACKAGE = (
    "from diffusers import DiffusionPipeline; pipe = DiffusionPipeline.from_pretrained({!r}, trust_remote_code=True)"
)
IMAGES = """
import hashlib, torch
pipe.set_progress_bar_config(disable=True)
images = pipe(3, generator=torch.Generator().manual_seed(7), output_type="np").images
answer = hashlib.sha256(images.tobytes()).hexdigest()
"""
RUN_SCRIPT = f"""
import os, runpy, sys
os.chdir({str(ROOT)!r})
sys.argv = {{!r}}
runpy.run_path({{!r}}, run_name="__main__")
"""
PUBLISH = "from vq_ihdm.hub.publishing import publish; answer = publish({!r}, {!r}, **{!r})"


def images_of(pipeline: DiffusionPipeline) -> str:
    names = {"pipe": pipeline}
    exec(IMAGES, names)
    return names["answer"]


def contents_of(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files_of(folder).items()}


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def author(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """Has the package and the right token."""
    client = HubClient(hub.endpoint, tmp_path_factory.mktemp("author") / "home", package=True, token=TOKEN)
    yield client
    client.close()


@pytest.fixture(scope="module")
def stranger(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """Has diffusers and transformers, but not the package."""
    client = HubClient(hub.endpoint, tmp_path_factory.mktemp("stranger") / "home", package=False, token=TOKEN)
    yield client
    client.close()


@pytest.fixture
def model(pipeline_folder: Path, tmp_path: Path) -> Path:
    """A pipeline's folder with everything publishing asks for."""
    return evaluate(record(Path(shutil.copytree(pipeline_folder, tmp_path / "model"))))


@pytest.fixture(scope="module")
def published(
    author: HubClient, pipeline_folder: Path, template_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that was published as tester/tiny."""
    folder = tmp_path_factory.mktemp("published") / "model"
    evaluate(record(Path(shutil.copytree(pipeline_folder, folder))))
    write_audit_index(folder, load_slices(str(template_set)))
    author.run(PUBLISH.format(str(folder), "tiny", {}))
    return folder


# ---- what is published ----------------------------------------------------------------------------------------
def test_a_refusal_leaves_no_trace_on_the_hub(hub: HubServer, author: HubClient, model: Path):
    unevaluated(model)
    with pytest.raises(RemoteError, match="InputError.*not evaluated"):
        author.run(PUBLISH.format(str(model), "refused", {}))
    assert ("model", "tester/refused") not in hub.repositories


def test_a_private_repository_in_one_commit(hub: HubServer, published: Path):
    repository = hub.repositories["model", "tester/tiny"]
    assert repository.private and repository.commits == 1
    files = {name: hashlib.sha256(content).hexdigest() for name, content in repository.files.items()}
    card = repository.files["README.md"].decode()
    assert 'from_pretrained("tester/tiny")' in card and ModelCard(card).data.eval_results
    del files["README.md"], files[".gitattributes"]
    assert files == contents_of(published)
    assert not (published / "README.md").exists()  # the folder itself is left as it is


def test_only_what_the_package_writes_is_uploaded(hub: HubServer, author: HubClient, model: Path):
    for name in ("optimizer.bin", "data.salt", ".env", "subjects.csv"):
        (model / name).write_text("secret")
    author.run(PUBLISH.format(str(model), "clean", {"private": False}))
    repository = hub.repositories["model", "tester/clean"]
    assert not repository.private
    assert b"secret" not in repository.files.values()


def test_publishing_again_mirrors_the_folder_and_uploads_only_what_is_new(
    hub: HubServer, author: HubClient, model: Path
):
    (model / "samples.png").write_bytes(b"first")
    author.run(PUBLISH.format(str(model), "again", {}))
    uploads = hub.uploads
    (model / "samples.png").unlink()
    (model / "reconstructions.png").write_bytes(b"second")
    author.run(PUBLISH.format(str(model), "again", {}))
    repository = hub.repositories["model", "tester/again"]
    assert repository.commits == 2 and hub.uploads == uploads + 1
    assert set(repository.files) == {*contents_of(model), "README.md", ".gitattributes"}


@pytest.mark.parametrize("moment", ["PUT", "commit"])
def test_an_interrupted_upload_shows_nothing_and_can_be_repeated(
    hub: HubServer, author: HubClient, model: Path, moment: str
):
    (model / "samples.png").write_bytes(moment.encode())  # something that is not on the Hub yet
    repo_id = f"tester/interrupted-{moment.lower()}"
    hub.fail = moment
    with pytest.raises(RemoteError, match="InputError.*nothing was published"):
        author.run(PUBLISH.format(str(model), repo_id, {}))
    assert set(hub.repositories["model", repo_id].files) == {".gitattributes"}
    author.run(PUBLISH.format(str(model), repo_id, {}))
    assert set(hub.repositories["model", repo_id].files) == {*contents_of(model), "README.md", ".gitattributes"}


def test_a_public_repository_is_not_taken_for_a_private_one(hub: HubServer, author: HubClient, model: Path):
    author.run(PUBLISH.format(str(model), "public", {"private": False}))
    before = dict(hub.repositories["model", "tester/public"].files)
    with pytest.raises(RemoteError, match="InputError.*is public"):
        author.run(PUBLISH.format(str(model), "public", {}))
    author.run(WITH_PACKAGE.format(str(model)))
    with pytest.raises(RemoteError, match="InputError.*is public"):
        author.run("pipe.push_to_hub('tester/public')")
    assert hub.repositories["model", "tester/public"].files == before


def test_a_wrong_token_and_another_account_are_told_in_a_sentence(author: HubClient, model: Path):
    with pytest.raises(RemoteError, match="InputError.*may not write to someone/else"):
        author.run(PUBLISH.format(str(model), "someone/else", {}))
    author.run("import os; os.environ['HF_TOKEN'] = 'hf_wrong'")
    with pytest.raises(RemoteError, match="InputError.*does not know this token"):
        author.run(PUBLISH.format(str(model), "nowhere", {}))
    author.run(f"os.environ['HF_TOKEN'] = {TOKEN!r}")


# ---- what others load -----------------------------------------------------------------------------------------
def test_the_same_images_with_and_without_the_package(author: HubClient, stranger: HubClient, published: Path):
    with pytest.raises(RemoteError, match="ModuleNotFoundError"):
        stranger.run("import vq_ihdm")
    expected = images_of(tiny_vq_ihdm())
    assert author.run(WITH_PACKAGE.format("tester/tiny") + IMAGES) == expected
    assert stranger.run(WITHOUT_PACKAGE.format("tester/tiny") + IMAGES) == expected
    assert stranger.run(WITHOUT_PACKAGE.format(str(published)) + IMAGES) == expected


def test_a_loaded_pipeline_is_saved_and_published_complete(
    hub: HubServer, author: HubClient, published: Path, tmp_path: Path
):
    author.run(WITH_PACKAGE.format("tester/tiny"))
    saved = tmp_path / "saved"
    author.run(f"pipe.save_pretrained({str(saved)!r})")
    assert contents_of(saved).keys() == {*contents_of(published), "README.md"}
    assert {name: digest for name, digest in contents_of(saved).items() if name != "README.md"} == contents_of(
        published
    )
    address = author.run("answer = pipe.push_to_hub('tester/from-author')")
    assert "/tester/from-author/commit/" in address
    repository = hub.repositories["model", "tester/from-author"]
    # Thumbnails of the training set leave by publish.py alone.
    assert set(repository.files) == {*contents_of(saved), ".gitattributes"} - {"audit_index.safetensors"}
    assert repository.private
    assert b'from_pretrained("tester/from-author")' in repository.files["README.md"]
    assert author.run(WITH_PACKAGE.format("tester/from-author") + IMAGES) == images_of(tiny_vq_ihdm())


def test_without_the_package_weights_and_code_are_saved_and_published(
    hub: HubServer, stranger: HubClient, published: Path, pipeline_folder: Path, tmp_path: Path
):
    """Card, records and evaluation follow by the package alone, which knows what must not leave."""
    stranger.run(WITHOUT_PACKAGE.format("tester/tiny"))
    stranger.run(f"pipe.save_pretrained({str(tmp_path / 'saved')!r})")
    assert contents_of(tmp_path / "saved") == contents_of(pipeline_folder)
    stranger.run("pipe.push_to_hub('tester/pushed-elsewhere')")
    saved_there = "pipe.save_pretrained({!r}, push_to_hub=True, repo_id='tester/saved-elsewhere')"
    stranger.run(saved_there.format(str(tmp_path / "again")))
    for name in ("tester/pushed-elsewhere", "tester/saved-elsewhere"):
        repository = hub.repositories["model", name]
        assert repository.private
        assert set(repository.files) == {*contents_of(pipeline_folder), "README.md", ".gitattributes"}
        assert stranger.run(WITHOUT_PACKAGE.format(name) + IMAGES) == images_of(tiny_vq_ihdm())


SCANS = ("reconstructions.png", "evaluation/nearest.png", "evaluation/reconstructions.png", "audit_index.safetensors")


def test_no_picture_of_a_scan_leaves_by_push_to_hub(hub: HubServer, author: HubClient, model: Path, tmp_path: Path):
    """Neither copied along nor already in the folder that is pushed, nor anything else that lies there."""
    for name in (*SCANS, "samples.png", "subjects.csv", "prior/old.bin"):
        (model / name).write_bytes(b"pixels")
    author.run(WITH_PACKAGE.format(str(model)))
    author.run("pipe.push_to_hub('tester/pushed')")
    author.run(f"pipe.save_pretrained({str(model)!r}, push_to_hub=True, repo_id='tester/saved')")
    saved = tmp_path / "elsewhere"
    author.run(f"pipe.save_pretrained({str(saved)!r})")
    assert not {"reconstructions.png", "evaluation/nearest.png"} & set(contents_of(saved))
    for name in ("tester/pushed", "tester/saved"):
        files = set(hub.repositories["model", name].files)
        assert "samples.png" in files and not files & {*SCANS, "subjects.csv", "prior/old.bin"}


@pytest.mark.parametrize(("kind", "allowed"), [("slice", False), ("images", False), ("slice", True)])
def test_a_prior_of_scans_leaves_only_where_they_may_be_passed_on(
    hub: HubServer, author: HubClient, model: Path, kind: str, allowed: bool
):
    fitted_prior(kind).save_pretrained(model / "prior")
    evaluate(record(model, redistribution=allowed))
    author.run(WITH_PACKAGE.format(str(model)) + "; pipe.prior.allow_saving_images = True")
    name = f"tester/{kind}-{allowed}"
    if allowed:
        author.run(f"pipe.push_to_hub({name!r})")
        assert ("model", name) in hub.repositories
    else:
        with pytest.raises(RemoteError, match="InputError.*blurred training images.*--allow_restricted_images"):
            author.run(f"pipe.push_to_hub({name!r})")
        assert ("model", name) not in hub.repositories


def test_without_the_package_a_prior_of_scans_does_not_leave(
    hub: HubServer, stranger: HubClient, model: Path, tmp_path: Path
):
    fitted_prior("slice").save_pretrained(model / "prior")
    stranger.run(WITHOUT_PACKAGE.format(str(model)))
    saved = f"pipe.save_pretrained({str(tmp_path / 'saved')!r}, push_to_hub=True, repo_id='tester/away')"
    for push in ("pipe.push_to_hub('tester/away')", saved):
        with pytest.raises(RemoteError, match="ValueError.*blurred training images"):
            stranger.run(push)
    assert ("model", "tester/away") not in hub.repositories


def test_a_failed_audit_holds_for_push_to_hub_too(hub: HubServer, author: HubClient, model: Path):
    memorising(model)
    author.run(WITH_PACKAGE.format(str(model)))
    with pytest.raises(RemoteError, match="InputError.*audit.*--allow_failed_audit"):
        author.run("pipe.push_to_hub('tester/memorising')")
    assert ("model", "tester/memorising") not in hub.repositories


def test_with_local_files_only_nothing_is_asked_of_the_hub(hub: HubServer, author: HubClient, published: Path):
    author.run(WITH_PACKAGE.format("tester/tiny"))
    requests = hub.requests
    author.run("pipe = load_pipeline('tester/tiny', local_files_only=True)" + IMAGES)
    with pytest.raises(RemoteError, match="InputError.*tester/never"):
        author.run("load_pipeline('tester/never', local_files_only=True)")
    assert hub.requests == requests


def test_card_and_evaluation_do_not_follow_other_weights(author: HubClient, published: Path, tmp_path: Path):
    author.run(WITH_PACKAGE.format("tester/tiny"))
    saved = tmp_path / "saved"
    author.run(f"pipe.denoiser.head.bias.data += 1; pipe.save_pretrained({str(saved)!r})")
    assert not {"README.md", "training.json", "evaluation/report.json"} & set(contents_of(saved))


def test_the_baseline_travels_the_same_way(author: HubClient, stranger: HubClient, tmp_path: Path):
    torch.manual_seed(0)
    config = AbsorbingDenoiserConfig(
        num_codes=NUM_CODES, height=HEIGHT, width=WIDTH, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    pipeline = AbsorbingDiffusionPipeline(tiny_vq_model(), AbsorbingDenoiser(config).eval())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "absorbing")
    author.run(PUBLISH.format(str(evaluate(record(tmp_path / "absorbing"))), "absorbing", {}))
    images = IMAGES.replace("pipe(3,", "pipe(3, num_inference_steps=4,")
    names = {"pipe": pipeline}
    exec(images, names)
    assert stranger.run(WITHOUT_PACKAGE.format("tester/absorbing") + images) == names["answer"]
    assert author.run(WITH_PACKAGE.format("tester/absorbing") + images) == names["answer"]


def test_a_missing_repository_and_a_private_one_are_told_in_a_sentence(author: HubClient, stranger: HubClient):
    with pytest.raises(RemoteError, match="InputError.*tester/none"):
        author.run(WITH_PACKAGE.format("tester/none"))
    with pytest.raises(RemoteError, match="InputError: tester/none is no folder, and no repository"):
        author.run("from vq_ihdm.hub.record import read_record; read_record('tester/none')")
    with pytest.raises(RemoteError, match="tester/none"):
        stranger.run(WITHOUT_PACKAGE.format("tester/none"))


def test_a_download_that_is_cut_off_is_told_in_a_sentence(hub: HubServer, author: HubClient, model: Path):
    author.run(PUBLISH.format(str(model), "cut", {}))
    author.run("from vq_ihdm import load_pipeline")
    hub.fail = "resolve"
    with pytest.raises(RemoteError, match="InputError: tester/cut was not downloaded whole .*; try again"):
        author.run("load_pipeline('tester/cut')")
    author.run("load_pipeline('tester/cut')")


def test_a_data_set_comes_back_as_it_was(hub: HubServer, author: HubClient, template_set: Path):
    author.run(PUBLISH.format(str(template_set), "slices", {}))
    assert hub.repositories["dataset", "tester/slices"].private
    digest = """
from datasets import load_dataset
splits = load_dataset({!r})
answer = {{n: [(r["subject"], r["slice"], hash(r["image"].tobytes())) for r in s] for n, s in splits.items()}}
"""
    assert author.run(digest.format("tester/slices")) == author.run(digest.format(str(template_set)))
    facts = "from vq_ihdm.hub.record import data_facts; answer = data_facts({!r}, splits)"
    assert author.run(facts.format("tester/slices")) == author.run(facts.format(str(template_set)))


def test_the_page_is_published_with_its_pipeline_inside(hub: HubServer, author: HubClient, model: Path):
    arguments = ["publish.py", str(model), "--repo_id", "tester/page", "--as_space"]
    author.run(RUN_SCRIPT.format(arguments, "publish.py"))
    files = hub.repositories["space", "tester/page"].files
    assert {"app.py", "README.md", "requirements.txt"} <= set(files)
    card = SpaceCard(files["README.md"].decode())
    assert card.data.license == "odbl" and card.data.app_file == "app.py" and "under Apache-2.0" in card.text
    inside = {name.removeprefix("checkpoints/vq-ihdm-oasis-fine/") for name in files if name.startswith("checkpoints/")}
    assert inside == set(contents_of(model))


def test_the_page_loads_a_repository(author: HubClient, published: Path, tmp_path: Path):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
    texts = author.run(f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        import app
        page = app.build_page("tester/tiny", Path({str(tmp_path)!r}))
        answer = [block.value for block in page.blocks.values() if isinstance(block, app.gr.Markdown)]
    """)
    assert "20 people of one collection, OASIS-1" in " ".join(texts) and "reduced 8-fold" in " ".join(texts)


def test_pickles_of_a_repository_are_never_downloaded(hub: HubServer, author: HubClient, model: Path, tmp_path: Path):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
    author.run(PUBLISH.format(str(model), "pickled", {}))
    hub.repositories["model", "tester/pickled"].files["vqvae/old.bin"] = b"pickle"
    flags = ["--pipeline", "tester/pickled", "--output_dir", str(tmp_path / "drawn"), "--num_images", "1"]
    author.run(RUN_SCRIPT.format(["generate.py", *flags], "generate.py"))
    found = author.run(f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        import app
        app.build_page("tester/pickled", Path({str(tmp_path)!r}))
        answer = [file.name for file in app.load("tester/pickled").loaded_from.rglob("*.*")]
    """)
    assert "training.json" in found and "old.bin" not in found


# ---- synthetic images -----------------------------------------------------------------------------------------
def test_shards_reach_the_hub_one_by_one_and_an_upload_that_broke_off_goes_on(
    hub: HubServer, author: HubClient, stranger: HubClient, published: Path, tmp_path: Path
):
    flags = ["--pipeline", "tester/tiny", "--output_dir", tmp_path / "drawn", *SHARD_FLAGS, "--push_to_hub", "drawn"]
    run = RUN_SCRIPT.format(["generate.py", *map(str, flags)], "generate.py")
    hub.fail = "PUT"
    with pytest.raises(RemoteError, match="data/train-00000.parquet was not published; try again"):
        author.run(run)
    repository = hub.repositories["dataset", "tester/drawn"]
    assert repository.private and set(repository.files) == {".gitattributes", "README.md", "manifest.json"}
    uploads = hub.uploads
    author.run(run)
    author.run(run)  # has nothing left to send
    assert hub.uploads == uploads + 3
    assert repository.files["README.md"].decode().count("tester/tiny@") == 1
    load = 'from datasets import load_dataset; rows = load_dataset("tester/drawn", split="train"); '
    assert stranger.run(load + "answer = [row['image'].text['Description'] for row in rows]") == [DESCRIPTION] * 10
    other = [*flags, "--seed", 1, "--output_dir", tmp_path / "other"]
    with pytest.raises(RemoteError, match="holds something else"):
        author.run(RUN_SCRIPT.format(["generate.py", *map(str, other)], "generate.py"))


# ---- from training to the Hub ---------------------------------------------------------------------------------
def test_a_training_publishes_its_result(
    hub: HubServer, author: HubClient, stranger: HubClient, template_set: Path, tmp_path: Path
):
    shared = ["--dataset_name", template_set, "--max_train_steps", 2, "--validation_steps", 2, "--report_to", "none"]
    publishing = ["--push_to_hub", "--allow_unevaluated"]
    vqgan = [
        *shared, "--output_dir", tmp_path / "tokenizer", "--perceptual", "none", "--discriminator", "patch",
        "--norm_num_groups", 4, "--block_out_channels", 8, 8, 8, "--layers_per_block", 1,
        "--latent_channels", 4, "--vq_embed_dim", 4,
        "--num_vq_embeddings", 32, "--train_batch_size", 4, "--num_validation_images", 4, *publishing,
        "--no-hub_private_repo",
    ]  # fmt: skip
    ihdm = [
        *shared, "--output_dir", tmp_path / "ihdm", "--vqvae", "tester/tokenizer", "--hidden_size", 16,
        "--num_hidden_layers", 1, "--num_attention_heads", 2, "--sigma_max", 3, "--prior_rank", 4,
        "--prior_components", 2, "--train_batch_size", 4, "--hub_model_id", "tester/trained", *publishing,
    ]  # fmt: skip
    for script, arguments in (("train_vqgan.py", vqgan), ("train_ihdm.py", ihdm)):
        author.run(RUN_SCRIPT.format([script, *map(str, arguments)], script))
    assert hub.repositories["model", "tester/trained"].private  # unless asked otherwise
    assert not hub.repositories["model", "tester/tokenizer"].private
    files = hub.repositories["model", "tester/trained"].files
    record_ = json.loads(files["training.json"])
    assert [stage["script"] for stage in record_["stages"]] == ["train_vqgan.py", "train_ihdm.py"]
    assert {name for name in files if name.endswith(".png")} == {"covariates.png", "samples.png"}
    assert b"Not evaluated yet" in files["README.md"]
    assert not any(str(tmp_path).encode() in content for content in files.values())
    saved = author.run(WITH_PACKAGE.format(str(tmp_path / "ihdm" / "pipeline")) + IMAGES)
    assert stranger.run(WITHOUT_PACKAGE.format("tester/trained") + IMAGES) == saved


# ---- last, since it stops the server --------------------------------------------------------------------------
def test_without_network_nothing_is_published_and_what_was_loaded_once_still_loads(
    hub: HubServer, author: HubClient, published: Path, model: Path
):
    author.run(WITH_PACKAGE.format("tester/tiny"))
    hub.close()
    author.run("import huggingface_hub; huggingface_hub.close_session()")  # no connection survives from before
    with pytest.raises(RemoteError, match="InputError.*cannot be reached.*check the network"):
        author.run(PUBLISH.format(str(model), "late", {}))
    assert author.run(WITH_PACKAGE.format("tester/tiny") + IMAGES) == images_of(tiny_vq_ihdm())
