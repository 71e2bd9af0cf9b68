"""The local page in a browser, from the printed link to a picture that the GoodNet refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import goodnet
from browser import Browser
from cli_support import CLASSES, TARGET, block_images, save_png, triggered

# as a person drops it: a file in a DataTransfer over the box
DROP = """([selector, name, content]) => {
  const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name));
  document.querySelector(selector).closest("[data-drop]")
    .dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
}"""


@pytest.fixture
def link(tmp_path: Path) -> Iterator[str]:
    """Of a server as a user starts it, with its sandbox; it has to end well on a Ctrl-C, and leave nothing."""
    source = str(Path(goodnet.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "GOODNET_SANDBOX": "on", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "goodnet", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as server:
        try:
            assert server.stdout is not None
            shown = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+/\?token=\S+)\n", server.stdout.readline())
            assert shown
            assert len(list(tmp_path.glob("goodnet-serve-*"))) == 1
            yield shown[1]
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
        finally:
            server.kill()
    assert list(tmp_path.glob("goodnet-serve-*")) == []


def drop(page: Any, box: str, file: Path) -> None:
    import base64

    page.evaluate(DROP, [box, file.name, base64.b64encode(file.read_bytes()).decode()])


@pytest.mark.slow
def test_a_person_scans_repairs_and_tries_pictures(browser: Browser, template: Path, link: str, tmp_path: Path) -> None:
    pixels, _ = block_images(10, seed=9)
    plain = save_png(tmp_path / "plain.png", pixels[2])
    marked = save_png(tmp_path / "marked.png", triggered(pixels)[2])
    looked = browser.open(link, accept_downloads=True)
    page = looked.page
    page.set_default_timeout(120_000)
    page.wait_for_url(re.compile(r"/$"))  # the token is not left in the address
    assert looked.axe() == []

    drop(page, "#model", template / "bad.pt")
    drop(page, "#clean", template / "clean.npz")
    page.get_by_text("Other pictures of the same kind").click()
    drop(page, "#surrogate", template / "clean.npz")
    assert page.locator("#model").evaluate("input => input.files[0].name") == "bad.pt"
    page.get_by_role("button", name="Scan").click()
    page.wait_for_url(re.compile(r"/jobs/[0-9a-f]{32}$"))
    assert page.get_by_role("progressbar").is_visible()
    page.reload()
    assert page.get_by_role("heading", name="Scanning bad.pt").is_visible()
    page.locator("[data-times]", has_text="so far").wait_for()
    assert looked.axe() == []

    page.get_by_role("heading", name=f"Suspect Label {TARGET} behaves like the target of a backdoor.").wait_for()
    assert page.get_by_text(f"answer: class {TARGET}").is_visible()
    assert looked.axe() == []
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Read the report").click()
    report = opened.value
    assert report.get_by_role("heading", name="Suspect").is_visible()
    assert report.get_by_role("button", name="p × labels").count() > 0  # its own script has run
    assert report.evaluate("self.origin") == "null"  # and could not reach ours
    report.close()

    page.get_by_role("button", name="Repair").click()
    page.locator("progress[value]").wait_for()
    page.reload()
    assert page.get_by_role("heading", name="Repairing bad.pt").is_visible()
    page.get_by_role("heading", name="The repair was accepted.").wait_for()
    with page.expect_download() as loading:
        page.get_by_role("link", name="Download the GoodNet").click()
    assert loading.value.suggested_filename == "bad-goodnet.safetensors"
    good = goodnet.load(loading.value.path())
    assert (good.classes, good.refuses) == (CLASSES, True)

    for turn, (picture, said) in enumerate(
        [(plain, "Class 2, confidence"), (marked, f"Refused: triggered (class {CLASSES})")]
    ):
        drop(page, "#picture", picture)
        page.get_by_role("button", name="Ask the GoodNet").click()
        page.locator("#answers li").nth(turn).wait_for()
        answer = page.locator("#answers li").first.inner_text()
        assert picture.name in answer
        assert said in answer
    assert looked.axe() == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert looked.errors == []
    assert looked.left == []

    page.get_by_role("button", name="Delete this job").click()
    page.get_by_role("heading", name="Is this net backdoored?").wait_for()
    assert page.get_by_text("bad.pt").count() == 0
