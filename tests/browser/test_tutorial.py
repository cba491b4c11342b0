"""The tutorial as a reader uses it: a real Chromium, the embedded model, every page.

`make test-browser` runs it. It prints how long readers wait, and leaves screenshots in the folder that SCREENSHOTS
names.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest
from conftest import ROOT
from playwright.sync_api import Browser, ConsoleMessage, Page, TimeoutError, expect, sync_playwright

from patchscopes.experiments.layer_readout import read_unpatched
from patchscopes.patchscope import Patchscope
from patchscopes.plots.text import show_whitespace
from patchscopes.tutorial.app import PAGES
from patchscopes.tutorial.pages import start

WIDTHS = {"wide": 1400, "phone": 400}
# Milliseconds until a page must be there, and until an answer must be: CI's machine may be busy.
PAGE_TIMEOUT, ANSWER_TIMEOUT = 60_000, 240_000
# A prompt and a position that no other test asks for, so that the answer has to be computed.
PROMPT = "The singer came from Brazil to London"
LOG: list[tuple[str, float]] = []


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The tutorial as `make tutorial` starts it, on a free port; the log has the seconds until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "scripts/tutorial.py", "--no-browser", "--port", str(port)]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        LOG.append(("from the command to a server that answers", time.monotonic() - started))
        listening = [c.laddr.ip for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        print("\nHow long readers wait:")
        for what, seconds in LOG:
            print(f"  {seconds:6.2f} s  {what}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert path, "no Chromium is installed: apt-get install chromium (Debian), or any that is called chromium"
    with sync_playwright() as playwright:
        # A sandbox within a container's root is none, and Chromium refuses it.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A reader's page; whatever the console calls an error is one."""
    context = browser.new_context(viewport={"width": WIDTHS["wide"], "height": 1000})
    opened = context.new_page()
    errors: list[str] = []
    opened.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []


def is_error(message: ConsoleMessage) -> bool:
    """Whether it is one of the page: Streamlit looks for its own server below the address of a page first."""
    return message.type == "error" and "/_stcore/" not in message.location["url"]


def open_address(page: Page, server: str, module: str = "", **address: str) -> None:
    """Open a page by its address, and wait for its answers."""
    page.goto(f"{server}/{module}?{urlencode(address)}")
    wait_for_answer(page)


def wait_for_answer(page: Page) -> None:
    """Wait until the model is there, and nothing is computed any more."""
    expect(page.get_by_text("click the token")).to_be_visible(timeout=ANSWER_TIMEOUT)
    wait_until_idle(page)


def wait_until_idle(page: Page) -> None:
    # Streamlit says so of the script that draws the page; it begins a moment after a click.
    with suppress(TimeoutError):
        page.wait_for_function(
            "() => document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'running'", timeout=1500
        )
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
        " && !document.querySelector('[data-testid=stSpinner]')",
        timeout=ANSWER_TIMEOUT,
    )


def expect_answers(page: Page, answers: list[str], column: int = 2) -> None:
    """Wait until a column of the first table holds the answers."""
    cells = page.get_by_test_id("stTable").first.locator(f"tbody tr td:nth-child({column})")
    expect(cells).to_have_text(answers, timeout=ANSWER_TIMEOUT)


def read_with_library(model, source_prompt: str, source_position: int | str) -> list[str]:
    """What the start page says of every layer."""
    patchscope = Patchscope(
        model=model,
        source_prompt=source_prompt,
        source_position=source_position,
        target_prompt="The official currency of x",
        target_position="x",
        target_layers=0,
    )
    return [show_whitespace(words) for words in patchscope.generate(start.N_TOKENS)]


def open_last_step(page: Page) -> None:
    page.get_by_role("radio", name="5. The model goes on").click()
    wait_until_idle(page)


def test_the_first_page_is_there_at_once(server, page):
    begun = time.monotonic()
    page.goto(server)
    expect(page.get_by_role("heading", name="What is a Patchscope?")).to_be_visible(timeout=PAGE_TIMEOUT)
    expect(page.get_by_text("In five steps")).to_be_visible(timeout=PAGE_TIMEOUT)
    LOG.append(("from there to the first page drawn, with its committed example", time.monotonic() - begun))
    wait_for_answer(page)
    LOG.append(
        (
            "until the model is there and has answered (it loads, and the fast engine is proved)",
            time.monotonic() - begun,
        )
    )


@pytest.mark.parametrize(("module", "title"), [(module, title) for module, title, _ in PAGES])
def test_every_page(server, page, screenshots, module, title):
    open_address(page, server, "" if module == "start" else module)
    expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    assert page.get_by_test_id("stAlertContentError").count() == 0
    assert page.get_by_test_id("stException").count() == 0
    begun = time.monotonic()
    page.get_by_role("radio", name=re.compile("sister")).click()
    wait_until_idle(page)
    LOG.append((f"another position on the page “{title}”, 30 layers", time.monotonic() - begun))
    page.get_by_role("radio", name=re.compile("Japan 5")).click()
    wait_until_idle(page)
    for name, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(500)
        # Nothing hangs over the edge of a phone.
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        take_screenshot(page, screenshots / f"{module}_{name}.png")


def take_screenshot(page: Page, path: Path) -> None:
    """Of the whole page: Streamlit scrolls within it, so the window is made as high as what is in it."""
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    size = page.viewport_size
    page.set_viewport_size({"width": size["width"], "height": height + 20})
    page.wait_for_timeout(300)
    page.screenshot(path=path)
    page.set_viewport_size(size)


def test_in_dark_mode(server, page, screenshots):
    page.emulate_media(color_scheme="dark")
    open_address(page, server)
    open_last_step(page)
    background = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 64
    take_screenshot(page, screenshots / "start_dark.png")


def test_a_click_on_a_token_is_answered_as_the_library_does(server, page, smollm):
    open_address(page, server, S=PROMPT, i="1")
    open_last_step(page)
    expected = read_with_library(smollm, PROMPT, "Brazil")
    begun = time.monotonic()
    page.get_by_role("radio", name=re.compile("Brazil")).click()
    expect_answers(page, expected)
    LOG.append(("a click on another token: 30 layers, 8 tokens each", time.monotonic() - begun))
    begun = time.monotonic()
    page.get_by_role("slider", name="Layers").first.focus()
    page.keyboard.press("ArrowRight")
    expect_answers(page, expected[1:])
    LOG.append(("other layers: 29 of them", time.monotonic() - begun))
    wait_until_idle(page)
    assert "1-29" in page.url


def test_by_keyboard_alone(server, page):
    open_address(page, server, S=PROMPT, i="1")
    token = page.get_by_role("radio", name=re.compile("singer"))
    token.focus()
    page.keyboard.press("Enter")
    wait_until_idle(page)
    assert "i=2" in page.url
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    wait_until_idle(page)
    expect(page.get_by_text("copy its state")).to_be_visible()


def test_a_link_says_the_same(server, page, browser, smollm):
    open_address(page, server, "change_one_thing", S=PROMPT, i="5", **{"ℓ": "6-8", "Bi": "6", "n": "5"})
    answers = [table.inner_text() for table in page.get_by_test_id("stTable").all()]
    first = Patchscope(
        model=smollm,
        source_prompt=PROMPT,
        source_position=5,
        source_layers=[6, 7, 8],
        target_prompt="The official currency of x",
        target_position="x",
        target_layers=0,
    )
    page.get_by_text("Table", exact=True).first.click()
    unpatched = read_unpatched(first.target, "generate", max_new_tokens=5)["generation"]
    expect_answers(page, [show_whitespace(words) for words in (unpatched, *first.generate(5))], column=3)
    another = browser.new_page()
    another.goto(page.url)
    wait_for_answer(another)
    assert [table.inner_text() for table in another.get_by_test_id("stTable").all()] == answers
    another.close()


def test_downloads(server, page, tmp_path):
    open_address(page, server, "change_one_thing", S=PROMPT, i="5", **{"ℓ": "6-8", "n": "5"})
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON").first.click()
    document = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert set(document) == {"experiment", "schema_version", "config", "environment", "results", "timing"}
    assert document["results"]["layers"] == [6, 7, 8]
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG").first.click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ({"T": "no place in it"}, "has no placeholder 'x'"),
        ({"ℓ*": "99"}, "layer 99 does not exist"),
        ({"S": "word " * 9000}, "the model reads at most"),
    ],
)
def test_wrong_inputs_get_the_library_s_sentence(server, page, address, told):
    page.goto(f"{server}/change_one_thing?{urlencode(address)}")
    expect(page.get_by_text(told)).to_be_visible(timeout=ANSWER_TIMEOUT)
    assert "Traceback" not in page.inner_text("body")


def test_two_readers_do_not_disturb_each_other(server, page, browser, smollm):
    another = browser.new_page()
    prompts = ("Her friend lives in Mexico now", "He was born in Poland, they say")
    words = ("Mexico", "Poland")
    pages = (page, another)
    for reader, prompt in zip(pages, prompts, strict=True):
        reader.goto(f"{server}/?{urlencode({'S': prompt, 'i': '1'})}")
    for reader in pages:
        wait_for_answer(reader)
        open_last_step(reader)
    for reader, word in zip(pages, words, strict=True):
        reader.get_by_role("radio", name=re.compile(word)).click()
    for reader, prompt, word in zip(pages, prompts, words, strict=True):
        expect_answers(reader, read_with_library(smollm, prompt, word))
    another.close()


def test_begins_without_a_question_on_a_fresh_machine(tmp_path):
    """Streamlit asks its first user for an address, and waits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"HOME": str(tmp_path), "BROWSER": "true"}
    command = [sys.executable, "scripts/tutorial.py", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait()
