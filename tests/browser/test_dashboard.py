"""What ops, product and customers do in a browser, from the door to the end; and that nothing breaks unseen."""

from __future__ import annotations

import re

from playwright.async_api import Browser, expect

from tests.acceptance.stage import ACTOR
from tests.browser.conftest import Site
from tests.browser.screen import LOOKS, Screen, a_screen
from worker.store.api_keys import ApiKeys

#: How long a player says that its sound is, once it has met it.
SECONDS_OF_SOUND = """async sound => {
    sound.preload = "metadata";
    sound.load();
    while (!(sound.duration > 0)) await new Promise(go => setTimeout(go, 20));
    return sound.duration;
}"""


#: What the navigation has for each role.
OFFERED = {
    "viewer": ["Overview", "Jobs", "Accounts", "Workers", "Prices", "Events"],
    "ops": ["Overview", "Jobs", "Accounts", "Workers", "Prices", "Events", "Audit"],
    "billing": ["Accounts", "Prices"],
    "product": ["Overview", "Workers", "Prices"],
}


async def test_each_role_signs_in_and_is_offered_what_it_may(site: Site, browser: Browser) -> None:
    """The navigation and the buttons are those of the role; each page it offers opens; then it signs out."""
    await site.stage.account("ada")
    for role, offered in OFFERED.items():
        async with a_screen(browser, site.base) as screen:
            await screen.sign_in(await site.key(role))
            links = screen.page.get_by_role("navigation", name="Pages").get_by_role("link")
            assert offered == await links.all_inner_texts()
            for place in offered:
                await screen.page.get_by_role("link", name=place, exact=True).click()
                await expect(screen.page).to_have_title(re.compile(rf"^{place}"))
            if "Accounts" in offered:
                await screen.open("/accounts/ada")
                assert (role == "billing") == await screen.page.get_by_text("Top up…").is_visible()
                assert (role == "ops") == await screen.page.get_by_text("Pause…").is_visible()
            await screen.page.get_by_role("button", name="Sign out").click()
            await screen.says("Signed out.")


async def test_a_job_is_watched_as_it_goes_through(site: Site, browser: Browser) -> None:
    """Its page moves by itself from queued over running to succeeded; so does the overview beside it."""
    gate = site.stage.gate()
    job = await site.stage.submit("gated", gate=str(gate))
    async with a_screen(browser, site.base) as overview, a_screen(browser, site.base) as screen:
        await overview.sign_in(await site.key("viewer"))
        await screen.sign_in(await site.key("viewer"))
        await screen.open(f"/jobs/{job}")
        await expect(screen.page.locator("#status")).to_contain_text("queued")
        await overview.says("gated has 1 job ready and no living worker.")
        site.stage.worker("gated")
        await expect(screen.page.locator("#status")).to_contain_text("running", timeout=30_000)
        await expect(screen.page.locator("#status")).to_contain_text("50 % waiting", timeout=30_000)
        await overview.says(re.compile(r"Music is being made: 1 job running"))
        await overview.picture("overview-running")
        await screen.picture("job-running")
        gate.touch()
        await expect(screen.page.locator("#status")).to_contain_text("succeeded", timeout=30_000)
        await screen.says("Finished. 10 credits were charged.")
        await overview.says(re.compile(r"Nothing to do: no job is ready, 1 done in the last hour"))


async def test_a_queue_is_paused_and_resumed(site: Site, browser: Browser) -> None:
    """With a reason that everybody sees at once; while it is paused nothing starts, afterwards it does."""
    site.stage.worker("null")
    async with a_screen(browser, site.base) as everybody, a_screen(browser, site.base) as screen:
        await everybody.sign_in(await site.key("viewer"))
        await screen.sign_in(await site.key("ops"))
        await screen.open("/queues/null")
        await screen.act("Pause…", "Pause", reason="GPU maintenance")
        await screen.says("Paused: GPU maintenance")
        await everybody.says(re.compile("null is paused: GPU maintenance"))
        job = await site.stage.submit("null")
        await everybody.says(re.compile(r"null is paused: GPU maintenance\. 1 job waits\."))
        await screen.open(f"/jobs/{job}")
        await screen.says("its queue, kind or account is paused")
        await screen.open("/queues/null")
        await screen.page.get_by_role("button", name="Resume").click()
        await screen.says("runs again")
        await site.stage.becomes(job, "succeeded")


async def test_failed_jobs_are_tried_again_after_a_look(site: Site, browser: Browser) -> None:
    """Filter, preview, confirm: each becomes a new job, once, and the log says who did it."""
    site.stage.worker("failing")
    failed = [await site.stage.submit("failing", error="final") for _ in range(3)]
    for job in failed:
        await site.stage.becomes(job, "failed")
    async with a_screen(browser, site.base) as screen:
        await screen.sign_in(await site.key("ops"))
        await screen.open("/jobs")
        await screen.page.get_by_label("State").select_option("failed")
        await screen.page.get_by_role("button", name="Search").click()
        await expect(screen.page.locator("tbody tr")).to_have_count(3)
        await screen.page.get_by_role("button", name="Preview…").click()
        await screen.says("3 jobs")
        assert 3 == await site.stage.value("SELECT count(*) FROM jobs")
        await screen.picture("many-preview")
        await screen.accessible()
        await screen.page.get_by_role("button", name="Try again 3 jobs").click()
        await screen.says("3 of 3 jobs tried again.")
        assert 3 == await site.stage.value("SELECT count(*) FROM jobs WHERE retry_of IS NOT NULL")
        await screen.open("/audit")
        await screen.says("jobs.retry_many")


async def test_jobs_of_an_album_are_compensated_after_a_look(site: Site, browser: Browser) -> None:
    """Narrowed by metadata and time; the preview says how much, the confirmation gives it, each job once."""
    site.stage.worker("null")
    albums = [await site.stage.submit("null", metadata={"album": album}) for album in ("blue", "blue", "red")]
    await site.stage.all_ended(albums)
    async with a_screen(browser, site.base) as screen:
        await screen.sign_in(await site.key("ops"))
        await screen.open("/jobs")
        await screen.page.get_by_label("Account").fill("ada")
        await screen.page.get_by_label("Submitted from (UTC)").fill("2020-01-01T00:00")
        await screen.page.get_by_label("Metadata").fill("album=blue")
        await screen.page.get_by_role("button", name="Search").click()
        await expect(screen.page.locator("tbody tr")).to_have_count(2)
        await screen.page.locator("select[name=verb]").select_option("compensate")
        await screen.page.get_by_label("Percent of the charge").fill("50")
        await screen.page.get_by_label("Reference of the act").fill("noise-of-monday")
        await screen.page.get_by_role("button", name="Preview…").click()
        await screen.says("They would be given 10 credits in all")
        await screen.picture("many-compensate")
        await screen.accessible()
        await screen.fits()
        before = (await site.stage.balance())["available"]
        await screen.page.get_by_label("Reason").fill("noise in the mix")
        await screen.page.get_by_role("button", name="Give credits for 2 jobs").click()
        await screen.says("2 of 2 jobs compensated, 10 credits given.")
        assert before + 10 == (await site.stage.balance())["available"]


async def test_a_price_is_changed_and_applied(site: Site, browser: Browser) -> None:
    """Typed into the form of numbers, checked, applied: the next quote is dearer, and the old book can come back."""
    async with a_screen(browser, site.base) as screen:
        await screen.sign_in(await site.key("product"))
        await screen.open("/prices")
        await screen.page.locator('[name="number:null/output/base"]').fill("11")
        await screen.page.get_by_role("button", name="Write them into the document").click()
        await screen.says("It can be applied")
        await screen.picture("prices-draft")
        await screen.accessible()
        when = screen.page.get_by_label("In force from")
        await when.fill("2099-06-01T00:00")
        await screen.page.get_by_role("button", name="Check").click()
        await screen.says("It can be applied, with a note that says why.")
        await expect(when).to_have_value("2099-06-01T00:00")
        await when.clear()
        await screen.page.get_by_label("Note").first.fill("null costs more")
        await screen.page.get_by_role("button", name="Apply", exact=True).click()
        await screen.says(re.compile(r"Book \d+ is in force from"))
        assert 11 == (await site.stage.value("SELECT 11 FROM price_books WHERE document LIKE '%base = 11%'"))
        job = await site.stage.submit("null")
        assert 11 == await site.stage.value("SELECT quoted FROM jobs WHERE job_id = $1", job)


async def test_a_customer_is_topped_up_and_sees_it(site: Site, browser: Browser) -> None:
    """Billing credits a purchase; the customer's own page shows it, and no page of the staff."""
    await site.stage.account("ada")
    token = await ApiKeys(site.stage.store.engine).token("ada", 600, ACTOR)
    async with a_screen(browser, site.base) as staff, a_screen(browser, site.base, "phone") as customer:
        await staff.sign_in(await site.key("billing"))
        await staff.open("/accounts/ada")
        await staff.act("Top up…", "Top up", pack="small", reference="order-77")
        await staff.says("100 credits topped up")
        await staff.says("order-77")
        await customer.open(f"/credits?token={token.key}")
        await customer.says("bought")
        await customer.says(re.compile(r"^100"))
        await customer.fits()
        await customer.accessible()
        await customer.picture("credits-phone")
        assert 0 == await customer.page.get_by_role("link", name="Accounts").count()


async def test_everything_works_without_javascript(site: Site, browser: Browser) -> None:
    """Signing in, reading, pausing: plain pages and plain forms."""
    await site.stage.account("ada")
    job = await site.stage.submit("null")
    async with a_screen(browser, site.base, java_script_enabled=False) as screen:
        await screen.sign_in(await site.key("ops"))
        await screen.says("no living worker")
        await screen.open(f"/jobs/{job}")
        await screen.act("Cancel…", "Cancel the job", reason="not needed")
        await screen.says(re.compile("It is cancelled"))


async def test_the_keyboard_reaches_everything(site: Site, browser: Browser) -> None:
    """The first stop skips to the page; a form is opened, filled and sent by keys alone."""
    async with a_screen(browser, site.base) as screen:
        await screen.sign_in(await site.key("ops"))
        await screen.open("/queues/generation")
        keys = screen.page.keyboard
        await keys.press("Tab")
        assert "Skip to the page" == await screen.page.evaluate("document.activeElement.innerText")
        await keys.press("Enter")
        await keys.press("Tab")  # Overview, above the page's title
        await keys.press("Tab")
        assert "Pause…" == await screen.page.evaluate("document.activeElement.innerText")
        await keys.press("Enter")
        await keys.press("Tab")
        await keys.type("keyboard")
        await keys.press("Enter")
        await screen.says("Paused: keyboard")


async def test_every_page_is_readable_and_usable_by_everybody(site: Site, browser: Browser) -> None:
    """On a desk, in the dark and on a phone: no serious finding of axe, nothing wider than the window, no complaint."""
    site.stage.worker("generation")
    await site.stage.account("acme/eu", 500)
    song = await site.stage.submit("generation", "acme/eu", prompt="warm lofi piano", seconds_max=12, model="draft")
    await site.stage.submit("null")
    await site.stage.becomes(song, "succeeded", 60)
    pages = {
        "overview": "/",
        "queue": "/queues/generation",
        "jobs": "/jobs",
        "job": f"/jobs/{song}",
        "accounts": "/accounts",
        "account": "/accounts/acme/eu",
        "workers": "/workers",
        "prices": "/prices?kind=generation&params=prompt%3Dx",
        "events": "/events?account=acme/eu",
        "audit": "/audit",
    }
    for look in LOOKS:
        async with a_screen(browser, site.base, look) as screen:
            await screen.open("/sign-in")
            await screen.accessible()
            await screen.sign_in(await site.key("admin"))
            for name, path in pages.items():
                await screen.open(path)
                await is_drawn(screen, name)
                await screen.accessible()
                await screen.fits()
                await screen.picture(f"{name}-{look}")


async def is_drawn(screen: Screen, name: str) -> None:
    """Wait for what a page draws or plays beside its text."""
    if name in {"overview", "queue"}:
        await expect(screen.page.locator(".plot canvas").first).to_be_visible()
    if name == "job":
        drawn = screen.page.locator(".sound img")
        await drawn.scroll_into_view_if_needed()
        await expect(drawn).to_have_js_property("naturalWidth", 720, timeout=30_000)
        assert 1 < await screen.page.locator(".sound audio").evaluate(SECONDS_OF_SOUND)
