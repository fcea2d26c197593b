"""The page of `dlgsanet web` in a real headless Chromium, with real pictures."""

import io
import zipfile

import pytest

from dlgsanet.cli import main
from tests.chromium import open_browser
from tests.web.conftest import Page


def command(picture, weights, folder, *options):
    """The bytes that `dlgsanet upscale` writes."""
    assert main(["upscale", str(picture), "-o", str(folder), "--weights", str(weights), "--overwrite", *options]) == 0
    return next(folder.glob(f"{picture.stem}.*")).read_bytes()


def position(page):
    return float(page.find("#pictures .comparison input")[0].get_property("value"))


def shift(page):
    return page.browser.execute_script("return document.querySelector('#pictures .layer img').style.transform")


def box(page, selector="#pictures .view"):
    view = page.find(selector)[0]
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", view)
    return page.browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", view)


def test_pictures_are_what_the_command_makes(page, pictures, weights, tmp_path):
    page.upscale(pictures.phone, pictures.glass, pictures.broken)
    assert [state for state, _ in page.states()] == ["done", "done", "failed"]
    assert "60×84 → 120×168" in page.states()[0][1]  # turned upright
    for selector, picture in (
        ("[data-state]:nth-of-type(1) a", pictures.phone),
        ("[data-state]:nth-of-type(2) a", pictures.glass),
    ):
        name, content = page.download(selector)
        assert name == f"{picture.stem}_x2{picture.suffix}"
        assert content == command(picture, weights, tmp_path)
    name, content = page.download("a.all")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["phone_x2.jpg", "glass_x2.png"]
        assert archive.read("phone_x2.jpg") == command(pictures.phone, weights, tmp_path)
    shown = "return [...document.querySelectorAll('#pictures img')].map(image => image.complete && image.naturalWidth)"
    page.wait(lambda: page.browser.execute_script(shown) == [60, 120, 84, 168])
    with pytest.raises(AssertionError):  # not a test that cannot fail
        command(pictures.broken, weights, tmp_path)


def test_the_line_of_a_broken_file_is_the_command_s(page, pictures, weights, tmp_path, capsys):
    page.upscale(pictures.broken)
    assert main(["upscale", str(pictures.broken), "-o", str(tmp_path), "--weights", str(weights)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"<i>broken.jpg: {page.states()[0][1]}")
    assert page.find("#pictures header b")[0].text == "<i>broken.jpg"
    assert not page.find("#pictures a")


def test_files_and_pictures_over_a_limit(page, pictures, photo, tmp_path):
    from PIL import Image

    page.upscale(pictures.wide)
    assert page.states()[0][0] == "failed"
    assert "1200x1000" in page.states()[0][1]
    page.add(pictures.heavy)
    page.wait(lambda: "heavy.jpg" in page.browser.find_element("css selector", "body").text)
    assert len(page.states()) == 1
    many = [tmp_path / f"{number}.png" for number in range(5)]
    for path in many:
        Image.fromarray(photo[:20, :20]).save(path)
    page.add(*many)
    page.wait(lambda: len(page.states()) == 4)
    assert [line.text.split(":")[0] for line in page.find("#pictures .problem")] == ["3.png", "4.png"]


def test_choices_are_followed(page, pictures, weights, tmp_path):
    from selenium.webdriver.common.keys import Keys

    kind = page.find("#choices input[aria-label='Save as']")[0]
    kind.click()
    kind.send_keys(Keys.CONTROL, "a")
    kind.send_keys("TIFF", Keys.ENTER)
    page.upscale(pictures.phone)
    assert page.download() == ("phone_x2.tif", command(pictures.phone, weights, tmp_path, "--ext", "tif"))


def test_the_slider_moves_by_mouse_touch_and_keyboard(page, pictures):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.upscale(pictures.phone)
    area = box(page)
    view, handle = page.find("#pictures .view")[0], page.find("#pictures .comparison input")[0]
    assert position(page) == 50
    ActionChains(page.browser).move_to_element(view).click_and_hold().move_by_offset(
        area["width"] // 4, 0
    ).release().perform()
    assert 65 <= position(page) <= 85
    clip = page.browser.execute_script("return getComputedStyle(document.querySelector('#pictures .after')).clipPath")
    assert abs(float(clip.split()[-1].rstrip("%)")) - position(page)) < 1  # what is shown follows

    def touch(kind, share=None):
        points = (
            [] if share is None else [{"x": area["x"] + area["width"] * share, "y": area["y"] + area["height"] / 2}]
        )
        page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.75)
    for share in (0.6, 0.4, 0.25):
        touch("touchMove", share)
    touch("touchEnd")
    assert 15 <= position(page) <= 35

    handle.send_keys(Keys.HOME)
    assert position(page) == 0
    handle.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert position(page) == 2


def test_zoom_and_moving_the_picture(page, pictures):
    from selenium.webdriver.common.action_chains import ActionChains

    page.upscale(pictures.phone)
    assert shift(page).endswith("scale(1)")
    out, closer = page.find("#pictures .controls button")
    assert not out.is_enabled()
    closer.click()
    closer.click()
    assert shift(page).endswith("scale(4)")
    before, at = shift(page), position(page)
    area = box(page)
    move = ActionChains(page.browser).move_to_element_with_offset(
        page.find("#pictures .view")[0], area["width"] // 3, 0
    )
    move.click_and_hold().move_by_offset(-20, 10).release().perform()
    assert shift(page) != before
    assert position(page) == at  # the picture moved, not the line
    out.click()
    assert shift(page).endswith("scale(2)")


def test_two_visitors_wait_for_each_other(server, page, slowly, pictures, photo, tmp_path):
    """The second visitor's picture waits for the first one's, and both are done. Neither sees the other's."""
    from PIL import Image

    other = open_browser()
    try:
        second = Page(other, server)
        large = [tmp_path / f"{name}.png" for name in "abc"]
        for file in large:
            Image.fromarray(photo).resize((900, 800)).save(file)
        for visitor, files in ((page, large), (second, [pictures.glass])):
            visitor.add(*files)
            visitor.wait(lambda visitor=visitor, files=files: len(visitor.states()) == len(files))
        page.click("#start")
        page.wait(lambda: page.states()[0][0] == "working")
        second.click("#start")
        second.wait(lambda: second.states()[0][0] != "added")
        state, text = second.states()[0]
        assert state == "waiting"
        assert text.endswith("before it")
        shown = [page.states()]
        while not {state for state, _ in shown[-1]} <= {"done", "failed"}:
            shown += [page.states()]
        assert any("left" in text for states in shown for _, text in states)
        assert [state for state, _ in shown[-1]] == ["done"] * 3
        second.wait(lambda: second.states()[0][0] == "done")
        assert second.download()[0] == "glass_x2.png"
    finally:
        other.quit()


def test_stop_and_go_on(page, slowly, photo, tmp_path):
    from PIL import Image

    for name in ("a.png", "b.png"):
        Image.fromarray(photo).resize((900, 800)).save(tmp_path / name)
    page.add(tmp_path / "a.png", tmp_path / "b.png")
    page.wait(lambda: len(page.states()) == 2)
    page.click("#start")
    page.wait(lambda: page.states()[0][0] == "working")
    page.click("#stop")
    page.wait(lambda: [state for state, _ in page.states()] == ["stopped", "stopped"])
    page.click("#clear")
    page.wait(lambda: page.states() == [])


def test_nothing_is_kept_once_the_page_is_closed(server, page, pictures):
    page.upscale(pictures.phone, pictures.glass)
    assert [name for name in server.files() if name.endswith("phone_x2.jpg")]
    page.browser.get("about:blank")
    page.wait(lambda: server.files() == [])


def test_no_other_machine_is_asked(page):
    addresses = page.browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert addresses
    assert [a for a in addresses if not a.startswith((server_of(page), "data:"))] == []
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("size", [(240, 4), (4, 240)])
def test_views_of_panoramas_and_strips_have_room(page, photo, tmp_path, size):
    from PIL import Image

    Image.fromarray(photo).resize(size).save(tmp_path / "long.png")
    page.upscale(tmp_path / "long.png")
    view = box(page)
    assert view["height"] > 70
    assert view["width"] > 150
    fit = "return getComputedStyle(document.querySelector('#pictures .view img')).objectFit"
    assert page.browser.execute_script(fit) == "contain"


def server_of(page):
    return page.server.address


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(page, pictures, width, scheme):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.upscale(pictures.phone, pictures.broken)
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
    dark = "return getComputedStyle(document.querySelector('#pictures .picture b')).color"
    assert (min(map(int, page.browser.execute_script(dark).strip("rgba()").split(",")[:3])) > 128) == (scheme == "dark")
    for button in page.find("#buttons button, #pictures .controls button"):
        assert button.size["height"] >= 36  # a finger finds it
        assert page.browser.execute_script("return arguments[0].scrollWidth <= arguments[0].offsetWidth", button)
