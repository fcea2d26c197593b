"""A server with the page, and a headless Chromium."""

import re
import socket
import time
from base64 import b64decode
from types import SimpleNamespace

import pytest
from PIL import Image

from dlgsanet.commands import web
from dlgsanet.web import device_queue
from tests.chromium import open_browser
from tests.small_network import network, photo, weights

__all__ = ["network", "photo", "weights"]


class Server(web.Server):
    """The page at a free port, with files below `root`."""

    def __init__(self, root, weights, *arguments):
        pytest.importorskip("gradio", reason="gradio is not installed")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        super().__init__(web.parser().parse_args(["--weights", str(weights), "--port", str(port), *arguments]), root)
        self.root, self.address = root, self.page.local_url

    def files(self):
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


@pytest.fixture(scope="session")
def server(tmp_path_factory, weights):
    """Limits: 1 MB, 1 megapixel, 4 pictures."""
    limits = ["--max-size", "1", "--max-pixels", "1", "--max-pictures", "4"]
    found = Server(tmp_path_factory.mktemp("web"), weights, *limits)
    yield found
    found.close()


class Page:
    """A browser's window with the page."""

    def __init__(self, browser, server):
        self.browser, self.server = browser, server
        browser.get(server.address)
        self.wait(lambda: browser.find_elements("css selector", "#files input[type=file]"))

    def wait(self, condition, seconds=300):
        """Until the condition holds; its value."""
        until = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < until, f"in vain: {self.states()}"
            time.sleep(0.1)
        return value

    def add(self, *files):
        self.browser.find_element("css selector", "#files input[type=file]").send_keys("\n".join(map(str, files)))

    def click(self, selector):
        self.browser.find_element("css selector", selector).click()

    def find(self, selector):
        return self.browser.find_elements("css selector", selector)

    def states(self):
        """(state, text) of every picture."""
        script = """return [...document.querySelectorAll('#pictures .picture')].map(
            picture => [picture.dataset.state, picture.querySelector('.text').textContent])"""
        return [tuple(pair) for pair in self.browser.execute_script(script)]

    def upscale(self, *files):
        """Add files, start, and wait until all are done or failed."""
        self.add(*files)
        self.wait(lambda: len(self.states()) == len(files))
        self.click("#start")
        self.wait(lambda: all(state in ("done", "failed") for state, _ in self.states()))

    def download(self, selector="a.download:not(.all)"):
        """(name, bytes) of what a link leads to, as the browser would store it."""
        script = """
            const [selector, done] = arguments, link = document.querySelector(`#pictures ${selector}`);
            fetch(link.href).then(async response => {
              const reader = new FileReader();
              reader.onload = () => done([response.headers.get('content-disposition'), reader.result]);
              reader.readAsDataURL(await response.blob());
            });"""
        disposition, data = self.browser.execute_async_script(script, selector)
        return re.search(r'filename="([^"]+)"', disposition)[1], b64decode(data.partition(",")[2])


@pytest.fixture(scope="session")
def browser():
    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture
def slowly(monkeypatch):
    """A picture takes seconds on a fast machine too."""
    upscale = device_queue.upscale_picture

    def upscale_slowly(*arguments, progress, **options):
        def slow_progress(share):
            time.sleep(0.2)
            progress(share)

        return upscale(*arguments, progress=slow_progress, **options)

    monkeypatch.setattr(device_queue, "upscale_picture", upscale_slowly)


@pytest.fixture
def page(browser, server):
    """The page, without pictures."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return Page(browser, server)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, photo):
    """Files as people have them: a phone's photograph on its side, a transparent PNG, a broken and a large one."""
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.fromarray(photo)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x010F] = "a phone"
    image.save(folder / "phone.jpg", quality=90, exif=exif, icc_profile=profile())
    glass = image.convert("RGBA")
    glass.putalpha(Image.radial_gradient("L").resize(image.size))
    glass.save(folder / "glass.png")
    broken = folder / "<i>broken.jpg"  # the name is text, not HTML
    broken.write_bytes((folder / "phone.jpg").read_bytes()[:900])
    (folder / "heavy.jpg").write_bytes((folder / "phone.jpg").read_bytes() + bytes(1_100_000))
    Image.new("RGB", (1200, 1000)).save(folder / "wide.png")
    return SimpleNamespace(broken=broken, **{path.stem: path for path in folder.iterdir() if path != broken})


def profile():
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
