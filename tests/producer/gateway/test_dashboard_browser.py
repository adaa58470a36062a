"""The dashboard in a real browser: what a person sees, clicks and types."""

import threading

import msgspec
import pytest
from browser import Browser
from gateway_process import GatewayProcess
from selenium.webdriver.common.keys import Keys as Key
from stub_worker import StubWorker
from wire_tools import SNAPSHOT, Worker, end, row

pytestmark = pytest.mark.browser

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@pytest.fixture(scope="module")
def gateway(redis_server, tmp_path_factory):
    """Its grace for jobs that nobody reads is longer than any wait here."""
    folder = tmp_path_factory.mktemp("gateway")
    with GatewayProcess(redis_server.url, folder, "--disconnect-grace", "60") as process:
        yield process


@pytest.fixture
def page(browser, gateway):
    """`page("dead")`: the browser with that view open; at the end nothing may have gone wrong."""

    def show(address: str = "", gateway: GatewayProcess = gateway) -> Browser:
        browser.open(f"{gateway.url}/dashboard#/{address}")
        return browser

    browser.look(1280)
    yield show
    assert browser.errors() == []
    browser.open("about:blank")


@pytest.fixture
def serving(wire):
    """A worker that has said what it does, and does no more."""
    worker = Worker(wire, "w-1", heartbeat_ms=0, heartbeat_ttl_ms=60_000)
    worker.step(snapshot=msgspec.json.encode(SNAPSHOT).decode())
    return worker


def row_of(browser: Browser, name: str) -> list[str]:
    """The cells of the table's row that begins with a name."""
    cells = browser.run(
        """return [...document.querySelectorAll("tbody tr")]
        .map((row) => [...row.cells].map((cell) => cell.textContent))
        .find((cells) => cells[0] === arguments[0]) ?? []""",
        name,
    )
    assert isinstance(cells, list)
    return cells


def published(wire, job_id: str) -> str:
    return "".join(entry.text for entry in wire.reply(job_id))


# ---- to look at


def test_the_overview_shows_a_queue_and_keeps_up(page, worker, wire, queue_name):
    browser = page()
    browser.wait(lambda: row_of(browser, queue_name)[:4] == [queue_name, "high", "0", "0"])
    browser.run("document.querySelector('tbody').kept = 'yes'")
    wire.submit("j", b'{"v": 1, "prompt": "hold", "sampling": {"seed": 1}}', lane="high")
    browser.wait(lambda: row_of(browser, queue_name)[:4] == [queue_name, "high", "0", "1"])
    assert browser.run("return document.querySelector('tbody').kept") == "yes"
    assert "waiting" in browser.text(".figures")
    worker.released.set()
    browser.wait(lambda: row_of(browser, queue_name)[3] == "0")


def test_a_workers_blocks_are_drawn(page, serving, queue_name):
    browser = page()
    browser.wait(lambda: row_of(browser, "w-1"))
    assert "3 of 4" in row_of(browser, "w-1")
    browser.click("td a[href*='/worker/']")
    browser.wait_text("h1", "w-1")
    cells = browser.run(
        "return [...document.querySelectorAll('.map i')].map((one) => one.className)"
    )
    assert cells == ["used", "shared", "free", "free", "cached", "free", "free", "free"]
    assert "2 used, 0 cached of 8 blocks of 16 tokens" in browser.text("main")
    assert "40 %" in browser.text(".figures"), "prefix hits"


def test_the_timeline_of_a_finished_job(page, wire):
    wire.submit("tl-1")
    worker = Worker(wire, "w-1")
    claim = worker.claim_one()
    worker.step(rows=[row(claim, 0, 7, 8)], prefills=[("tl-1", claim.epoch, 5, True)])
    worker.step(ends=[end(claim, 2)])
    browser = page("job")
    browser.type("#job-id", "tl-1")
    browser.press(Key.ENTER)
    browser.wait_text("h2", "tl-1")
    moments = browser.texts("tbody td:first-child")
    assert moments == ["accepted", "claimed", "first token", "last token"]
    bars = browser.run(
        "return [...document.querySelectorAll('rect')].map((one) => one.className.baseVal)"
    )
    assert bars == ["queue", "prefill", "decode"]
    assert "done" in browser.text(".state")
    assert "worker w-1" in browser.text(".job")


def test_an_unknown_job_is_a_sentence(page):
    browser = page("job/nothing")
    browser.wait_text("#found", "there is no job 'nothing' here")
    assert all("404" in error for error in browser.errors())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_is_wider_than_a_narrow_window(page, serving, bury, wire, scheme):
    long = "a-rather-long-name-of-a-job-" * 4
    bury(long, 7)
    wire.submit("w" * 100)
    views = {
        "": "td a[href*='/worker/']",
        f"worker/{wire.keys.queue}/w-1": ".map",
        f"job/{'w' * 100}": ".job",
        "dead": f".letter a[href*='{long}']",
        "playground": "select[name=model] option",
    }
    for view, sign in views.items():
        browser = page(view)
        browser.look(480, scheme)
        browser.wait_for(sign)
        assert browser.run("return document.documentElement.scrollWidth") <= 480, view


def test_it_follows_the_colour_scheme(page):
    browser = page()
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser.look(1280, "dark")
    dark = browser.run(ground)
    browser.look(1280, "light")
    assert browser.run(ground) != dark


def test_it_is_used_by_keyboard(page, serving):
    browser = page()
    browser.wait_text("h1", "Overview")
    browser.press(Key.TAB, Key.TAB, Key.TAB, Key.TAB, Key.ENTER)  # the brand, then the views
    browser.wait_text("h1", "Dead letters")
    assert browser.run("return document.activeElement.tagName") == "H1"
    assert browser.texts("nav [aria-current]")[0].startswith("Dead letters")


def test_an_outage_is_said_and_passes(page, own_server, tmp_path):
    server = own_server()
    with GatewayProcess(server.url, tmp_path) as gateway:
        browser = page("", gateway)
        browser.wait_text("main", "No queue yet")
        server.kill()
        browser.wait_text("#trouble:not([hidden])", "Nothing newer can be read")
        server.start()
        browser.wait(lambda: browser.texts("#trouble[hidden]"))
        assert all("503" in error for error in browser.errors())


# ---- to do


def test_the_playground_streams_token_by_token_and_stops(page, redis_url, wire, queue_name):
    with StubWorker(redis_url, queue_name) as worker:
        worker.steps_allowed = threading.Semaphore(0)
        browser = page("playground")
        browser.wait_text("select[name=model]", queue_name)
        browser.run("document.forms[0].elements.model.value = arguments[0]", queue_name)
        browser.run("document.forms[0].elements.limit.value = 4000")
        browser.type("textarea", "hello")
        browser.click("button[name=send]")
        for more, tokens in ((1, 1), (1, 2), (2, 4)):
            worker.steps_allowed.release(more)
            browser.wait_text("#said", f"{tokens} token")
        (job_id,) = [key.decode().rpartition(":")[2] for key in wire.redis.keys(wire.keys.job("*"))]
        shown = browser.text(".turn.assistant")
        assert shown == published(wire, job_id) != ""
        assert wire.state(job_id) == "running"
        browser.click("button[name=stop]")
        browser.wait_text("#said", "Stopped.")
        # The stub hears of a cancel at a step; there are more to come than a wait takes.
        browser.wait(lambda: worker.steps_allowed.release() or wire.state(job_id) == "cancelled")
        assert browser.text(".turn.assistant") == shown, "what came is kept, and no more comes"
        browser.wait(lambda: browser.element("button[name=send]").is_enabled())


def test_a_chat_goes_on_and_an_error_is_said(page, worker, queue_name):
    browser = page("playground")
    browser.wait_text("select[name=model]", queue_name)
    browser.run("document.forms[0].elements.model.value = arguments[0]", queue_name)
    browser.run("document.forms[0].elements.mode.value = 'chat'")
    for turns in (1, 2):
        browser.type("textarea", f"hello {MARKUP}" + Key.CONTROL + Key.ENTER)
        browser.wait_for(f".turn:nth-child({2 * turns})")
        browser.wait_text("#said", "its timeline")
    assert browser.texts(".turn.user") == [f"hello {MARKUP}"] * 2
    assert all(" w" in text for text in browser.texts(".turn.assistant"))
    assert browser.texts("#talk img") == []
    browser.type("textarea", "fail" + Key.CONTROL + Key.ENTER)
    browser.wait_text("#said", "asked to fail")
    browser.click("#said a")
    browser.wait_text(".job", "stub_failure")


def test_a_dead_letter_is_retried_once_it_is_confirmed(page, redis_url, wire, bury, queue_name):
    bury("poison")
    browser = page("dead")
    browser.wait_text(".letter h2", "poison")
    assert "Traceback" in browser.text(".letter pre")
    assert browser.text("#dead-count") != "0"
    browser.click(".letter button")
    browser.click("#sure button[value=no]")
    assert wire.state("poison") == "dead"
    browser.click(".letter button")
    browser.click("#sure button[value=yes]")
    browser.wait_text("#said", "Queued again: poison")
    browser.wait(lambda: "poison" not in browser.text(".letter h2"))
    with StubWorker(redis_url, queue_name):
        browser.wait(lambda: wire.state("poison") == "done")


def test_what_a_letter_says_is_text(page, wire, serving):
    letter = {"id": "x", "reason": "crashed", "message": MARKUP, "error": MARKUP, "crashes": 3}
    wire.redis.xadd(wire.keys.dead, letter)
    browser = page("dead")
    browser.wait_text(".letter pre", MARKUP)
    assert MARKUP in browser.text(".letter p")
    assert browser.texts("main img") == []


def test_a_key_is_asked_for_and_kept_in_the_tab(page, keyed_gateway, bury, serving):
    for tenant in ("anna", "ben"):
        bury(f"{tenant}.bad", tenant=tenant)
    browser = page("dead", keyed_gateway)
    browser.wait_text("#key-dialog[open]", "This gateway wants one")
    browser.type("#key", "sk-nobody" + Key.ENTER)
    browser.wait_text("#key-dialog[open]", "no tenant has the API key")
    browser.type("#key", "sk-anna" + Key.ENTER)
    browser.wait_text(".letter h2", "anna.bad")
    assert "ben.bad" not in browser.text("main")
    browser.reload()
    browser.wait_text(".letter h2", "anna.bad")
    assert browser.texts("#key-dialog[open]") == []
    browser.click("#leave")
    browser.wait_text("#key-dialog[open]", "This gateway wants one")
    assert all("401" in error for error in browser.errors())
