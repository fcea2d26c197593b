"""The results page in a real headless Chromium."""

from unittest import mock

import pytest

from dlgsanet.cli import main
from dlgsanet.errors import UserError
from tests.chromium import open_browser
from tests.evaluation.conftest import small_weights, write_set


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """x4.html of two networks on two sets."""
    root = tmp_path_factory.mktemp("page")
    sets = [write_set(root, name, (4,), size) for name, size in (("One", (96, 120)), ("Two", (120, 200)))]
    weights = [small_weights(root / f"{name}.pth", 4, seed) for seed, name in enumerate(("A", "B"))]
    arguments = ["benchmark", *map(str, weights), "--data", *map(str, sets), "-o", str(root / "out"), "--runs", "1"]
    assert main(arguments) == 0
    return root / "out/x4.html"


@pytest.fixture(scope="module")
def browser(page):
    driver = open_browser()
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def column(browser, number):
    cells = browser.find_elements("css selector", f"#table tbody tr > :nth-child({number})")
    return [cell.text for cell in cells]


def header(browser, title):
    buttons = browser.find_elements("css selector", "#table thead button")
    return next((i, button) for i, button in enumerate(buttons, 1) if button.text == title)


def test_is_one_file(page):
    text = page.read_text()
    assert "{{" not in text
    assert 'src="http' not in text
    assert 'href="http' not in text
    assert [path.name for path in page.parent.glob("*.html")] == ["x4.html"]


def test_loads_without_errors(browser):
    assert browser.get_log("browser") == []
    assert len(browser.find_elements("css selector", ".picture")) == 6
    broken = "return [...document.images].filter(i => i.loading !== 'lazy' && !(i.complete && i.naturalWidth)).length"
    assert browser.execute_script(broken) == 0
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == browser.execute_script(
        "return performance.getEntriesByType('resource').filter(r => r.name.startsWith('data:')).length"
    )


def test_sorting_sorts_both_ways(browser):
    number, button = header(browser, "One PSNR")
    button.click()
    values = [float(text) for text in column(browser, number)]
    assert values == sorted(values, reverse=True)
    header(browser, "One PSNR")[1].click()
    assert [float(text) for text in column(browser, number)] == sorted(values)
    header(browser, "method")[1].click()
    assert column(browser, 1) == ["A", "B", "bicubic"]
    state = browser.find_element("css selector", "#table th[aria-sort=ascending]")
    assert state.text.startswith("method")


def test_what_is_unknown_sorts_last(browser):
    number, button = header(browser, "params [K]")
    for _ in range(2):
        button.click()
        assert column(browser, number)[-1] == "–"
        _, button = header(browser, "params [K]")


def position(browser):
    return browser.execute_script("return getComputedStyle(document.querySelector('.slider')).getPropertyValue('--at')")


def test_slider_moves_by_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    handle = browser.find_element("css selector", ".slider input")
    start = position(browser)
    handle.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert position(browser) != start
    handle.send_keys(Keys.HOME)
    assert position(browser) == "0%"
    clip = "return getComputedStyle(document.querySelector('.slider .after')).clipPath"
    assert browser.execute_script(clip).endswith("0%)") or browser.execute_script(clip) == "inset(0px)"


def test_slider_moves_by_mouse(browser):
    from selenium.webdriver.common.action_chains import ActionChains

    handle = browser.find_element("css selector", ".slider input")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    quarter = handle.size["width"] // 4
    ActionChains(browser).move_to_element(handle).click_and_hold().move_by_offset(quarter, 0).release().perform()
    assert 65 <= float(position(browser).rstrip("%")) <= 85


def test_slider_moves_by_touch(browser):
    handle = browser.find_element("css selector", ".slider input")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    box = browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", handle)
    y = box["y"] + box["height"] / 2

    def touch(kind, share=None):
        points = [] if share is None else [{"x": box["x"] + box["width"] * share, "y": y}]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.5)
    for share in (0.45, 0.35, 0.25):
        touch("touchMove", share)
    touch("touchEnd")
    assert 15 <= float(position(browser).rstrip("%")) <= 35


def test_methods_of_the_slider_can_be_chosen(browser):
    from selenium.webdriver.support.select import Select

    picture = browser.find_element("css selector", ".picture")
    select = Select(picture.find_element("css selector", "select.after"))
    assert [option.text for option in select.options] == ["bicubic", "A", "B", "original"]
    before = picture.find_element("css selector", "img.after").get_attribute("src")
    select.select_by_visible_text("original")
    assert picture.find_element("css selector", "img.after").get_attribute("src") != before


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(browser, width, scheme):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert len(browser.find_elements("css selector", "#over-parameters circle")) == 2
    assert len(browser.find_elements("css selector", "#over-latency circle")) == 2
    sizes = "return [...document.querySelectorAll('#over-parameters text')].map(t => t.getBoundingClientRect().height)"
    assert min(browser.execute_script(sizes)) >= 12  # pixels: not shrunk with the chart
    assert "measured here" in browser.find_element("css selector", "#legend").text
    slider, table = (
        browser.execute_script("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", part)
        for part in (".picture .slider", ".picture .details table")
    )
    assert (slider["right"] <= table["left"] and slider["top"] < table["bottom"]) == (width == 1440)


def test_a_network_that_fails_leaves_the_pictures_of_the_others(browser, tmp_path):
    """On all pictures, or on one of them: then its mean is of fewer pictures."""
    write_set(tmp_path, "Photos")
    for name in ("A", "none"):
        small_weights(tmp_path / f"{name}.pth")
    arguments = ["--data", str(tmp_path / "Photos"), "-o", str(tmp_path), "--runs", "0", "--batch", "1"]
    assert main(["benchmark", str(tmp_path / "A.pth"), *arguments]) == 0
    (tmp_path / "pictures/x2/A/Photos/coffee.png").write_bytes(b"not the picture that has the scores")
    with mock.patch("dlgsanet.evaluation.benchmark._network", side_effect=UserError("broken")):
        assert main(["benchmark", str(tmp_path / "A.pth"), str(tmp_path / "none.pth"), *arguments]) == 2
    browser.get((tmp_path / "x2.html").as_uri())
    assert browser.get_log("browser") == []
    titles = [title.text for title in browser.find_elements("css selector", ".picture h3")]
    assert titles == ["astronaut", "chelsea"]
    assert "not all have scores: 1." in browser.find_element("css selector", "#about-pictures").text
    number, _ = header(browser, "Photos PSNR")
    cells = dict(zip(column(browser, 1), column(browser, number), strict=True))
    assert "(" not in cells["bicubic"]
    assert cells["A"].endswith(" (2 of 3)")
    assert cells["none"] == "–"
