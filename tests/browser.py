"""A headless Chromium on the page of app.py; as a script it takes the picture of the docs:

python tests/browser.py checkpoints/vq-ihdm-oasis-fine docs/app.png
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars", "window-size=1280,900",
)  # fmt: skip


def start_browser(profile: Path, downloads: Path):
    """A Chromium with its own profile; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[dev]'")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def visit(browser, address: str, count: int) -> list:
    """Open the page and wait for the `count` images that it draws on load."""
    browser.get(address)

    def loaded() -> list:
        images = browser.find_elements("css selector", "#samples .grid-container img")
        complete = [image for image in images if image.get_property("complete") and image.get_property("naturalWidth")]
        return complete if len(complete) == count else []

    return until(loaded)


def until(condition: Callable, seconds: float = 60):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the browser waited in vain"
        time.sleep(0.1)
    return value


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import app

    pipeline, picture = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        for name in ("page", "profile", "downloads"):
            (Path(folder) / name).mkdir()
        page = app.build_page(pipeline, Path(folder) / "page")
        address = app.serve(page, Path(folder), prevent_thread_lock=True, quiet=True)
        browser = start_browser(Path(folder) / "profile", Path(folder) / "downloads")
        visit(browser, address, 8)
        time.sleep(1)  # until the spinner has faded
        browser.save_screenshot(str(picture))
        browser.quit()
        page.close()
