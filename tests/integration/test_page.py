"""The service's page in a real browser: drop, slider, add, remove, page; and nothing comes from elsewhere.

Where PADDLEX_FEAT_SCREENSHOTS names a folder, screenshots are left there: those of the docs.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.services import serving

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("selenium")
if not shutil.which("chromium") or not shutil.which("chromedriver"):
    pytest.skip("Chromium and its driver are not installed", allow_module_level=True)

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.slow
DROP = """
const [name, data, done] = arguments;
const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, {type: "image/png"}));
dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--window-size=1100,1000", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


def png(path: Path) -> str:
    """Base64 of a photograph as PNG, for browsers do not show PGM."""
    import cv2

    return base64.b64encode(cv2.imencode(".png", cv2.imread(str(path)))[1].tobytes()).decode()


def addresses(browser: Any) -> set[str]:
    """Where the page's requests went."""
    found = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.add(message["params"]["request"]["url"].split(",")[0])
    return found


def screenshot(browser: Any, name: str) -> None:
    if folder := os.environ.get("PADDLEX_FEAT_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder, name)))


class Page:
    """The page of a service with five photographs each of 13 people."""

    def __init__(self, browser: Any, service: Any, faces: Path):
        self.browser, self.service, self._faces = browser, service, faces
        for person in range(21, 34):
            for number in range(1, 6):
                image = png(faces / "images" / f"s{person}" / f"{number:02d}.pgm")
                body = {"image": image, "key": f"s{person}/{number}.png", "label": f"person {person}"}
                service.call("POST", "/v1/items", body, 201)
        self.reload()

    def reload(self) -> None:
        self.browser.get(self.service.url)
        self.until(lambda: len(self.captions("items")) == 48)

    def find(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def until(self, condition: Callable[[], bool]) -> None:
        WebDriverWait(self.browser, 30).until(lambda _: condition())

    def captions(self, place: str) -> list[str]:
        code = "return [...document.querySelectorAll(arguments[0])].map(b => b.textContent)"
        return self.browser.execute_script(code, f"#{place} figcaption b")

    def count(self, selector: str) -> int:
        return self.browser.execute_script("return document.querySelectorAll(arguments[0]).length", selector)

    def drop(self, name: str, photograph: str) -> None:
        self.browser.execute_script(DROP, name, png(self._faces / "images" / photograph))
        self.until(lambda: self.find("asked").is_displayed() and len(self.captions("hits")) == 24)
        self.until(lambda: self.count("#hits img") == 24)

    def slide(self, value: float) -> None:
        code = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.browser.execute_script(code, self.find("threshold"), str(value))


@pytest.fixture(scope="module")
def page(browser, run_folder, faces, tmp_path_factory) -> Iterator[Page]:
    with serving(tmp_path_factory.mktemp("page"), str(run_folder / "best_model/inference")) as service:
        yield Page(browser, service, faces)


def test_the_gallery_is_paged_through_by_label(page):
    page.reload()
    assert "65 images" in page.find("stats").text and "page 1" in page.find("shown").text
    assert not page.find("back").is_enabled()
    page.find("next").click()
    page.until(lambda: len(page.captions("items")) == 17)
    assert page.find("back").is_enabled() and not page.find("next").is_enabled()
    page.find("back").click()
    page.until(lambda: len(page.captions("items")) == 48)
    page.browser.find_element(By.CSS_SELECTOR, "#labels option[value='=person 25']").click()
    page.until(lambda: page.captions("items") == ["person 25"] * 5)


def test_a_dropped_picture_is_answered_and_the_slider_tells_what_is_known(page):
    page.reload()
    page.drop("who.png", "s25/06.pgm")
    screenshot(page.browser, "page.png")
    automatic = float(page.find("value").text)
    assert page.find("answer").text in {"unknown", page.captions("hits")[0]} and -1 <= automatic <= 1
    page.slide(1)
    assert page.find("answer").text == "unknown" and page.count("#hits .near") == 0
    page.slide(-1)
    assert page.find("answer").text == page.captions("hits")[0] and page.count("#hits .near") == 24
    page.find("auto").click()
    assert float(page.find("value").text) == pytest.approx(automatic)


def test_a_picture_is_added_under_any_label_and_removed(page):
    label = "<b>new</b> 新"
    page.reload()
    page.drop("who.png", "s25/06.pgm")
    page.find("label").send_keys(label)
    page.find("add").click()
    page.until(lambda: "66 images" in page.find("stats").text)
    page.until(lambda: page.captions("hits")[0] == label)
    assert page.service.call("GET", "/v1/items?key=who.png")["items"][0]["label"] == label
    page.browser.find_element(By.CSS_SELECTOR, "#hits figure button").click()
    page.until(lambda: "65 images" in page.find("stats").text)
    page.until(lambda: label not in page.captions("hits"))


def test_what_is_no_picture_is_told(page):
    page.reload()
    page.browser.execute_script(DROP.replace("image/png", "text/plain"), "a.txt", "aGFsbG8=")
    page.until(lambda: "not a picture" in page.find("problem").text)
    page.browser.execute_script(DROP, "broken.png", base64.b64encode(b"no image").decode())
    page.until(lambda: page.find("problem").text and "not a picture" not in page.find("problem").text)


def test_nothing_came_from_elsewhere(page):
    known = (page.service.url, "data:", "blob:", "chrome:")
    assert not [address for address in addresses(page.browser) if not address.startswith(known)]
    severe = [entry["message"] for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("400" in line or "favicon" in line for line in severe), severe


def test_a_service_with_a_token_is_used_once_it_is_given(browser, run_folder, tmp_path):
    with serving(tmp_path, str(run_folder / "best_model/inference"), PADDLEX_FEAT_TOKEN="s3cret") as service:
        browser.get(service.url)
        wait = WebDriverWait(browser, 30)
        wait.until(lambda b: "token" in b.find_element(By.ID, "problem").text)
        browser.find_element(By.ID, "token").send_keys("s3cret\t")
        wait.until(lambda b: "0 images" in b.find_element(By.ID, "stats").text)
