"""A headless Chromium, and pages in it that note all they log and ask for."""

from __future__ import annotations

import contextlib
import os
import shutil

import pytest

from helpers import ROOT

SCREENSHOTS = ROOT / "build" / "screenshots"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ADVICE = "scripts/install_chromium.sh installs one"


@contextlib.contextmanager
def open_browser():
    """A browser; skips the test, with the reason, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    # As root Chromium has no sandbox; it opens files of these tests alone.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=flags)
        except sync_api.Error as error:
            pytest.skip(f"no Chromium starts: {_ADVICE} ({str(error).splitlines()[0]})")
        with contextlib.closing(browser):
            yield browser


class OpenPage:
    """A file in a tab of its own.

    Attributes:
        tab: Playwright's page.
        problems: What the console, the script and dialogs said.
        requests: Addresses that were asked for, but for the file itself.
    """

    def __init__(self, browser, file, width=1280, height=900, **options):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.tab = self.context.new_page()
        self.problems, self.requests = [], []
        self.tab.on("console", lambda message: self.problems.append(message.text))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("dialog", self._dismiss)
        address = file.as_uri()
        self.tab.on("request", lambda r: r.url != address and self.requests.append(r.url))
        self.tab.goto(address)
        self.tab.wait_for_selector("html[data-ready]", state="attached")

    def _dismiss(self, dialog):
        self.problems.append(dialog.message)
        dialog.dismiss()

    def screenshot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.tab.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def boxes(self):
        """First lines of the boxes that are drawn, by key."""
        return self.tab.eval_on_selector_all(
            "#drawing .box",
            "all => Object.fromEntries(all.map("
            "box => [box.dataset.key, box.querySelector('text').textContent]))",
        )

    def click_box(self, key, count=1):
        """Click into the corner of a box, which is that of a module even if it is open."""
        self.tab.locator("#fit").click()
        self.show_graph()
        box = self.tab.locator(f'#drawing .box[data-key="{key}"] > .body').bounding_box()
        self.tab.mouse.click(box["x"] + 4, box["y"] + 4, click_count=count)

    def show_graph(self):
        """Scroll to the graph; return where it is in the window."""
        self.tab.locator("#drawing").evaluate("drawing => drawing.scrollIntoView({block: 'end'})")
        return self.tab.locator("#drawing").bounding_box()

    def close(self):
        self.context.close()
