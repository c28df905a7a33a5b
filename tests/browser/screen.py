"""A browser as a person uses it: Debian's Chromium, which reports everything that a person would never notice."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright, expect

from tests.acceptance.stage import ROOT

#: Kept as build output: what each page looks like.
PICTURES = ROOT / "build" / "screenshots"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
#: The sizes and colours that pages are looked at in.
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1380, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1380, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}
_SERIOUS = frozenset({"serious", "critical"})


def chromium() -> str | None:
    """Where Chromium is; None where it isn't."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass  # without slots: Playwright remembers its wrappers on whoever owns a handler
class Screen:
    """One window. `complaints`: what went wrong that no person would see."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)

    async def open(self, path: str) -> None:
        """Go to a page and wait until it is there."""
        answer = await self.page.goto(self.base + path, wait_until="load")
        assert answer is not None
        assert answer.ok, f"{path}: {answer.status}"

    async def sign_in(self, key: str) -> None:
        """As a person does: paste the key, press the button."""
        await self.open("/sign-in")
        await self.page.get_by_label("API key").fill(key)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.wait_for_url(lambda url: "/sign-in" not in url)

    async def act(self, label: str, confirm: str, **fields: str) -> None:
        """Open a button's small form, fill it in, press the second button."""
        form = self.page.locator("details.act", has=self.page.get_by_text(label, exact=True))
        await form.locator("summary").click()
        for name, value in fields.items():
            field_ = form.locator(f"[name={name}]")
            if await field_.evaluate("field => field.tagName") == "SELECT":
                await field_.select_option(value)
            else:
                await field_.fill(value)
        await form.get_by_role("button", name=confirm, exact=True).click()

    async def says(self, text: str | re.Pattern[str], seconds: float = 15) -> None:
        """Wait until the page says so somewhere."""
        await expect(self.page.get_by_text(text).first).to_be_visible(timeout=seconds * 1000)

    async def accessible(self) -> None:
        """Raises for what keeps people from using the page: contrast, names, structure."""
        found = await Axe().run(self.page)
        serious = [one for one in found.response["violations"] if one["impact"] in _SERIOUS]
        assert not serious, "\n".join(
            f"{self.page.url}: {one['id']}: {one['help']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
            for one in serious
            for node in one["nodes"][:4]
        )

    async def picture(self, name: str) -> None:
        """Keep what the page looks like."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    async def fits(self) -> None:
        """Raises where the page is wider than its window: people would have to scroll sideways to read."""
        widths = await self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1], f"{self.page.url} is {widths[0]} px wide in a window of {widths[1]}"

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"console {message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.complaints.append(f"asked another server: {request.url}")


@asynccontextmanager
async def started_browser(executable: str) -> AsyncIterator[Browser]:
    """Chromium, ended with the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def a_screen(browser: Browser, base: str, look: str = "desktop", **more: Any) -> AsyncIterator[Screen]:
    """A window of its own, with no complaints at the end of the block."""
    context = await browser.new_context(**{**LOOKS[look], **more})
    context.set_default_timeout(20_000)
    page = await context.new_page()
    screen = Screen(page, base)
    page.on("console", screen._console)
    page.on("pageerror", lambda error: screen.complaints.append(f"script error: {error}"))
    page.on("request", screen._request)
    if more.get("java_script_enabled", True):
        await page.expose_function("fermataViolation", lambda what: screen.complaints.append(f"policy: {what}"))
        await page.add_init_script(
            "addEventListener('securitypolicyviolation', "
            "event => fermataViolation(event.violatedDirective + ' ' + event.blockedURI))"
        )
    try:
        yield screen
        assert [] == screen.complaints
    finally:
        await context.close()


def log_of(path: Path) -> str:
    """The end of a process's log, for a failure."""
    return path.read_text(errors="replace")[-3000:]
