"""Pages as a browser shows them: nothing is fetched, nothing overflows, light, dark and printed."""

import shutil
from itertools import pairwise

import pytest
from examples import ABOUT, HOSTILE, confusion, findings, inspection
from playwright.sync_api import Error, sync_playwright

import vitkit
from vitkit.evaluation.findings import Findings
from vitkit.reports.classes import OfClass
from vitkit.reports.comparison import write_comparison
from vitkit.reports.evaluation import write_evaluation
from vitkit.reports.inspection import write_inspection
from vitkit.reports.training import write_report
from vitkit.training.config import TrainConfig
from vitkit.workflows.compare import read

KINDS = ("run", "evaluation", "inspection", "comparison")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    run = vitkit.pretrain("digits", out=folder / "run", steps=4, batch_size=16, quiet=True)
    classes = [OfClass(f"{HOSTILE} {n}", n / 30, 1234) for n in range(30)]
    return {
        "run": write_report(run.folder, classes, recipe=TrainConfig(recipe="quickstart")),
        "evaluation": write_evaluation(folder / "evaluation.html", findings(), ABOUT),
        "inspection": write_inspection(
            folder / "inspection.html", inspection((8, 8), 4, 3, 1), ABOUT
        ),
        "comparison": write_comparison(
            folder / "comparison.html", [read(run.folder, "base"), read(run.folder, HOSTILE)]
        ),
    }


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
        except Error as error:
            pytest.skip(f"no Chromium: apt install chromium, or playwright install ({error})")
        yield started
        started.close()


def opened(browser, path, width, scheme="light"):
    """The page in a fresh browser that lets it fetch nothing, and all that went wrong."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append("a script ran"), dialog.dismiss()))

    def only_the_file(route):
        if route.request.url == path.as_uri() or route.request.url.startswith("data:"):
            route.continue_()
        else:
            wrong.append(f"asked for {route.request.url}")
            route.abort()

    context.route("**/*", only_the_file)
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return page, wrong


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fetches_nothing_and_fits_its_window(browser, pages, kind, width):
    page, wrong = opened(browser, pages[kind], width)
    assert not wrong
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    boxes = page.evaluate(
        "[...document.querySelectorAll('svg, img')].map(e => [e.getBoundingClientRect().width, "
        "e.getBoundingClientRect().height, e.complete === undefined || e.naturalWidth > 0])"
    )
    assert len(boxes) >= 4
    assert all(wide > 40 and high > 40 and loaded for wide, high, loaded in boxes)
    # What is wider scrolls inside a box of its own.
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll, figure')].every(e => "
        "e.getBoundingClientRect().right <= innerWidth + 0.5)"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_has_words_headings_are_in_order_and_ids_are_single(browser, pages, kind):
    page, _ = opened(browser, pages[kind], 1440)
    assert page.evaluate(
        "[...document.querySelectorAll('img')].every(e => e.alt.length > 3) && "
        "[...document.querySelectorAll('svg')].every(e => e.getAttribute('role') == 'img' && "
        "e.getAttribute('aria-label').length > 10)"
    )
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len({*ids})
    for link in page.evaluate("[...document.querySelectorAll('nav a')].map(e => e.hash)"):
        assert link[1:] in ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_follows_the_readers_scheme_and_is_printed_in_black_on_white(browser, pages, kind):
    def colours(page):
        """Brightness, 0..255, of the page, its text and the text of a figure."""
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.body).color, "
            "getComputedStyle(document.querySelector('svg text')).fill]"
            ".map(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3)"
        )

    paper, ink, figure = colours(opened(browser, pages[kind], 1440, "light")[0])
    assert paper > 240 and ink < 60 and figure < 120
    page, _ = opened(browser, pages[kind], 1440, "dark")
    paper, ink, figure = colours(page)
    assert paper < 40 and ink > 200 and figure > 140
    page.emulate_media(media="print", color_scheme="dark")
    paper, ink, figure = colours(page)
    assert paper > 240 and ink < 60 and figure < 120


def test_a_phone_reads_a_figures_text_at_a_size_that_can_be_read(browser, pages):
    page, _ = opened(browser, pages["run"], 375)
    heights = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"
    )
    assert min(heights) > 7


def test_a_confusion_matrix_of_ten_classes_fits_a_phone_with_its_bar_of_colours(browser, tmp_path):
    found = Findings({}, confusion=confusion(10))
    page, _ = opened(browser, write_evaluation(tmp_path / "page.html", found, {}), 375)
    figure = "document.querySelector('figure')"
    assert page.evaluate(f"{figure}.scrollWidth <= {figure}.clientWidth")
    last = page.evaluate(
        f"[...{figure}.querySelectorAll('text')].find(e => e.textContent == 'share of the true "
        "class').getBoundingClientRect().right"
    )
    assert last <= 375 - 16


@pytest.mark.parametrize(("width", "said"), [(375, True), (1440, False)])
def test_what_a_phone_scrolls_says_so(browser, tmp_path, width, said):
    found = Findings({}, confusion=confusion(12))
    page, _ = opened(browser, write_evaluation(tmp_path / "page.html", found, {}), width)
    figure = "document.querySelector('figure.wide')"
    assert page.evaluate(f"{figure}.scrollWidth > {figure}.clientWidth") == said
    sign = page.evaluate(f"getComputedStyle({figure}, '::before').content")
    assert ("scroll sideways" in sign) == said
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll, figure.wide')].every(e => "
        "getComputedStyle(e).backgroundAttachment == 'local, local, scroll, scroll')"
    )
