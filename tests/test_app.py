"""The page: what it draws, and that a visitor of the browser sees and gets it."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import start_browser, until, visit
from conftest import tiny_conditional, tiny_vq_ihdm
from hub_fixtures import record
from PIL import Image

from vq_ihdm import GANPipeline, VQIHDMPipeline
from vq_ihdm.baselines.stacks import LatentDecoder
from vq_ihdm.data.images import load_slices
from vq_ihdm.hub.audit_index import POOL, write_audit_index

pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
nib = pytest.importorskip("nibabel")

import gradio  # noqa: E402
import gradio_client  # noqa: E402
import httpx  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import app  # noqa: E402

pytestmark = pytest.mark.slow

NUMBERS = {"num_images": 3, "seed": 4, "steps": 2, "temperature": 0.9, "guidance_scale": 1, "second_seed": 5}
SETTINGS = NUMBERS | {"asked": {}}


def test_no_code_beside_the_weights_is_run(pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "model"))
    for file in folder.rglob("*.py"):
        file.write_text("raise SystemExit('code from the folder ran')")
    assert isinstance(app.load(folder), VQIHDMPipeline)
    monkeypatch.setitem(sys.modules, "vq_ihdm", None)  # as in a Space
    with pytest.raises(ValueError, match="--pipeline needs this project's package"):
        app.load(folder)
    monkeypatch.setattr(app, "SHIPPED", pipeline_folder)
    assert type(app.load(pipeline_folder)).__module__.startswith("diffusers_modules")


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def folder(pipeline_folder: Path, template_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with record and audit index."""
    folder = record(Path(shutil.copytree(pipeline_folder, tmp_path_factory.mktemp("app") / "model")), spacing_mm=[2, 3])
    write_audit_index(folder, load_slices(str(template_set)))
    return folder


@pytest.mark.parametrize(("blend", "seed"), [(0.0, 4), (1.0, 5)])
def test_at_its_ends_the_slider_gives_the_states_of_the_two_seeds(blend: float, seed: int):
    pipe = tiny_vq_ihdm()
    generators, others = ([torch.Generator().manual_seed(s + i) for i in range(3)] for s in (4, 50))
    blended, covariates = app.blended_states(pipe, generators, others, blend, {})
    assert covariates == {}
    expected = pipe.prior.sample(3, [torch.Generator().manual_seed((4 if blend == 0 else 50) + i) for i in range(3)])
    noise = torch.stack([torch.randn(expected.shape[1:], generator=g) for g in restarted(pipe, 4)])
    assert torch.allclose(blended, expected + pipe.scheduler.config.delta * noise, atol=1e-5)


def restarted(pipe, seed: int) -> list[torch.Generator]:
    """Generators that have drawn from the prior, and no more."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(3)]
    pipe.prior.sample(3, generators)
    return generators


def test_without_blending_the_page_draws_what_the_pipeline_draws():
    pipe = tiny_vq_ihdm()
    pipe.prior.basis.mul_(20)  # a denoiser that has learned nothing hardly sees a state as weak as the prior's
    expected = pipe(3, num_inference_steps=2, temperature=0.9, generator=torch.Generator().manual_seed(4)).images
    assert (pixels(app.draw(pipe, **SETTINGS, blend=0.0).images) == pixels(expected)).all()
    assert (pixels(app.draw(pipe, **SETTINGS, blend=0.5).images) != pixels(expected)).any()


@pytest.fixture(scope="module")
def conditional() -> VQIHDMPipeline:
    return tiny_conditional()


def seeded(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(3)]


@pytest.mark.parametrize(("blend", "sex_of"), [(0.0, 0), (0.3, 0), (0.7, 1), (1.0, 1)])
def test_blended_states_come_with_the_covariates_of_their_draws(conditional, blend: float, sex_of: int):
    _, covariates = app.blended_states(conditional, seeded(4), seeded(50), blend, {})
    nothing = torch.full((3, 2), torch.nan)
    draws = [conditional.prior.draw(nothing, seeded(seed))[1] for seed in (4, 50)]
    age, _ = conditional.known_covariates
    assert covariates["age"] == [age.decode(x) for x in torch.lerp(draws[0][:, 0], draws[1][:, 0], blend).tolist()]
    assert covariates["sex"] == ["FM"[int(index)] for index in draws[sex_of][:, 1]]
    _, covariates = app.blended_states(conditional, seeded(4), seeded(50), blend, {"age": 75, "sex": "F"})
    assert covariates == {"age": [75] * 3, "sex": ["F"] * 3}


@pytest.mark.parametrize("blend", [0.0, 0.5])
def test_the_denoiser_is_told_what_is_asked_and_what_is_drawn(conditional, blend: float):
    told = []
    hook = conditional.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["covariates"]), with_kwargs=True
    )
    app.draw(conditional, **SETTINGS | {"steps": 1, "asked": {"age": 75}}, blend=blend)
    hook.remove()
    assert (told[0][:, 0] == 75).all() and not told[0].isnan().any()


def test_what_is_asked_for_changes_the_images(conditional):
    def images(**asked) -> np.ndarray:
        return pixels(app.draw(conditional, **SETTINGS | {"asked": asked}, blend=0.0).images)

    assert (images(age=25) != images(age=75)).any() and (images(age=25) != images()).any()


def test_guidance_changes_the_images_where_something_is_asked_for(conditional):
    def images(guidance_scale: float) -> np.ndarray:
        settings = SETTINGS | {"asked": {"age": 75}, "guidance_scale": guidance_scale}
        return pixels(app.draw(conditional, **settings, blend=0.0).images)

    assert (images(1) != images(5)).any()


def test_only_what_is_not_left_free_is_asked_for(conditional):
    assert app.ask(conditional, [True, True], [75, "F"]) == {}
    assert app.ask(conditional, [False, True], [75, "F"]) == {"age": 75}
    assert app.ask(conditional, [False, False], [75, "F"]) == {"age": 75, "sex": "F"}
    assert app.ask(tiny_vq_ihdm(), [], []) == {}
    for values, sentence in (((150, "F"), "20 to 80"), ((75, "X"), "one of F, M"), ((float("nan"), "F"), "20 to 80")):
        with pytest.raises(gradio.Error, match=sentence):
            app.ask(conditional, [False, False], values)


def labelled(page: gradio.Blocks) -> dict:
    return {block.label: block for block in page.blocks.values() if getattr(block, "label", None)}


def test_the_page_offers_what_the_pipeline_knows(asked_folder: Path, pipeline_folder: Path, tmp_path: Path):
    blocks = labelled(app.build_page(asked_folder, tmp_path))
    age, sex = blocks["age"], blocks["sex"]
    assert (age.minimum, age.maximum, age.value, age.step) == (20, 80, 50, 1)
    assert sex.choices == [("F", "F"), ("M", "M")]
    for name in ("age", "sex"):
        assert blocks[f"{name} as in the training population"].value is True
    assert blocks["Guidance"].visible
    plain = labelled(app.build_page(pipeline_folder, tmp_path))
    assert not plain["Guidance"].visible
    assert "Seed" in plain and not any("population" in label for label in plain)


def test_a_visitor_asks_for_covariates(asked_folder: Path, tmp_path: Path):
    offered, received = tmp_path / "offered", tmp_path / "received"
    offered.mkdir()
    blocks = app.build_page(asked_folder, offered)
    address = app.serve(blocks, offered, prevent_thread_lock=True, quiet=True)
    client = gradio_client.Client(address, verbose=False, download_files=str(received))

    def sheet(*free_and_values) -> Path:
        return Path(client.predict(*ASKED.values(), *free_and_values, api_name="/generate")[1])

    as_drawn, young, old = sheet(True, True, 50, "F"), sheet(False, True, 25, "F"), sheet(False, True, 75, "F")
    assert len({file.name for file in (as_drawn, young, old)}) == 3
    assert (np.asarray(Image.open(young)) != np.asarray(Image.open(old))).any()
    with pytest.raises(gradio_client.exceptions.AppError):
        sheet(False, True, 150, "F")
    blocks.close()


def test_a_training_slice_is_found_in_the_audit_index(folder: Path, template_set: Path):
    index = load_file(folder / "audit_index.safetensors")
    assert index["training"].shape == (32, (32 // POOL) ** 2)
    copied = load_slices(str(template_set))["train"][5]["image"]
    black = Image.new("L", (32, 32))
    mirrored = copied.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    *copies, other = app.captions([copied, mirrored, black], None, index)
    for copy in copies:
        assert float(copy.split(" · ")[0]) < 0.5 and copy.endswith(" 0%")
    assert float(other.split(" · ")[0]) > 5
    assert app.captions([black], None, None) == [""]
    told = app.captions([black, black], {"age": [71.25, 30.0], "sex": ["F", "M"]}, index)
    assert told[0].startswith("age 71.2 · sex F · ") and told[1].startswith("age 30 · sex M · ")


def test_the_set_a_pipeline_was_trained_on_gives_the_index(folder: Path, template_set: Path, tmp_path: Path):
    pipe = app.load(folder)
    index = app.training_index(str(template_set), pipe)
    assert all(torch.equal(index[name], saved) for name, saved in load_file(folder / "audit_index.safetensors").items())
    pipe.vqvae.register_to_config(block_out_channels=[8] * 5)  # 128x128 pixels
    with pytest.raises(ValueError, match="has slices of"):
        app.training_index(str(template_set), pipe)
    with pytest.raises(ValueError, match="nowhere"):
        app.build_page(folder, tmp_path, str(tmp_path / "nowhere"))


def test_the_page_says_why_it_shows_no_distances(
    folder: Path, pipeline_folder: Path, template_set: Path, tmp_path: Path
):
    """The shipped model comes without an index; its user may have the training slices."""

    def told(*arguments: Path | str) -> list[bool]:
        blocks = app.build_page(*arguments).blocks.values()
        texts = " ".join(block.value for block in blocks if isinstance(block, gradio.Markdown))
        return [part in texts for part in ("reduced 8-fold", "--dataset_name FOLDER")]

    assert told(folder, tmp_path) == [True, False]
    assert told(pipeline_folder, tmp_path) == [False, True]
    assert told(pipeline_folder, tmp_path, str(template_set)) == [True, False]


def test_the_nifti_file_holds_the_slices_the_right_way_round(tmp_path: Path):
    image = np.zeros((16, 32), np.uint8)
    image[0, 1] = 7  # in front, second column
    app.save_nifti([Image.fromarray(image)] * 3, [2.0, 3.0], tmp_path / "slices.nii.gz")
    loaded = nib.load(tmp_path / "slices.nii.gz")
    assert loaded.shape == (32, 16, 3) and nib.aff2axcodes(loaded.affine) == ("R", "A", "S")
    assert loaded.header.get_zooms() == (3.0, 2.0, 1.0)
    assert loaded.dataobj[1, 15, 0] == 7


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running page."""
    offered = tmp_path_factory.mktemp("offered")
    blocks = app.build_page(folder, offered)
    yield app.serve(blocks, offered, prevent_thread_lock=True, quiet=True)
    blocks.close()


@pytest.fixture(scope="module")
def visitor(page: str, tmp_path_factory: pytest.TempPathFactory) -> gradio_client.Client:
    return gradio_client.Client(page, verbose=False, download_files=str(tmp_path_factory.mktemp("received")))


ASKED = NUMBERS | {"steps": 1, "temperature": 1.0, "second_seed": 1, "blend": 0.0}


def test_the_files_a_visitor_gets_say_that_they_are_synthetic(visitor: gradio_client.Client):
    gallery, sheet, volume = visitor.predict(*ASKED.values(), api_name="/generate")
    assert len(gallery) == 3 and "Synthetic" in Image.open(sheet).text["Description"]
    assert b"Synthetic" in bytes(nib.load(volume).header["descrip"])


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 2**64, None])
def test_numbers_that_no_slider_gives_are_refused_in_a_sentence(name: str, value: float | None):
    app.check(app.RANGES, *ASKED.values())
    with pytest.raises(gradio.Error, match="must be a number from 0|must be a number from 1"):
        app.check(app.RANGES, *(ASKED | {name: value}).values())


def test_a_pipeline_that_draws_in_many_steps_has_a_page_that_takes_them():
    usual = {"num_inference_steps": 20, "temperature": 2.0}
    ranges = app.ranges_of(usual, is_asked=True)
    app.check(ranges, *(ASKED | {"steps": 20, "temperature": 2.0}).values())
    assert ranges["Images"] == app.RANGES["Images"]
    assert app.ranges_of({"num_inference_steps": 1, "temperature": 1.0}, is_asked=True) == app.RANGES


def test_a_caller_of_the_api_is_refused_too(visitor: gradio_client.Client):
    # the last: what cannot be asked for anything cannot be guided either
    for name, value in (("temperature", 7), ("seed", -1), ("num_images", 10_000), ("guidance_scale", 2)):
        with pytest.raises(gradio_client.exceptions.AppError):
            visitor.predict(*(ASKED | {name: value}).values(), api_name="/generate")


def test_uploads_are_closed(page: str):
    for address in ("gradio_api/upload", "upload", "gradio_api/upload/"):
        assert httpx.post(page + address, files={"files": ("a.txt", b"text")}).status_code == 403
    assert httpx.get(page).status_code == 200


def test_old_files_are_removed(tmp_path: Path):
    for name, age in (("old", app.LIFETIME + 10), ("new", 10)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    app.remove_old(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_limits_are_named(folder: Path):
    said = app.describe_limits(json.loads((folder / "training.json").read_text()))
    assert "20 people of one collection, OASIS-1" in said and "what looks like a finding is none" in said
    assert "people of one" not in app.describe_limits({})


def test_another_system_is_refused(tmp_path: Path):
    GANPipeline(LatentDecoder(32, 32, latent_dim=8).eval()).save_pretrained(tmp_path / "gan")
    with pytest.raises(ValueError, match="holds a GANPipeline"):
        app.load(tmp_path / "gan")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator:
    browser = start_browser(tmp_path_factory.mktemp("profile"), downloads)
    yield browser
    browser.quit()


def test_a_visitor_sees_eight_brains_then_others_and_downloads_them(browser, page: str, downloads: Path):
    images = visit(browser, page, 8)
    first = images[0].get_property("src")
    browser.find_element("css selector", "#seed input").send_keys("7")
    browser.find_element("css selector", "#generate").click()
    shown = "#samples .grid-container img"
    until(lambda: browser.find_element("css selector", shown).get_property("src") != first)
    images = visit(browser, page, 8)
    assert all(image.get_property("naturalWidth") == 32 for image in images)
    assert len(re.findall(r"\d+\.\d · \d+%", browser.find_element("css selector", "#samples").text)) == 8
    for button in ("png", "nifti"):
        browser.find_element("css selector", f"#{button}").click()
    assert Image.open(until(lambda: list(downloads.glob("*.png")))[0]).size == (4 * 32, 2 * 32)
    assert nib.load(until(lambda: list(downloads.glob("*.nii.gz")))[0]).shape == (32, 32, 8)
