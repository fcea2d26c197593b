"""`dlgsanet web`: a page in the browser that upscales pictures."""

import argparse
import errno
import ipaddress
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser, whole_number
from dlgsanet.errors import ArgumentError

HERE = "127.0.0.1"
EXAMPLES = """\
examples:
  dlgsanet web                                on this computer, at port 7860
  dlgsanet web --host 0.0.0.0 --max-pixels 4  for everyone in the network
"""


def parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        "dlgsanet web",
        description="A page in the browser that upscales pictures: drop them, compare before and after, download.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--host", default=HERE, metavar="ADDRESS", help="address to serve at; 0.0.0.0: all networks; default: "
        "127.0.0.1, which only this computer can reach")  # fmt: skip
    add("--port", type=whole_number(1, 65535), default=7860, help="default: %(default)s")
    add("-n", "--weights", metavar="WEIGHTS", help="offer only these: a .safetensors or .pth file, or the name of "
        "included weights; default: all that are included")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, mps, xpu; default: the GPU if there is one")
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of weights and features; "
        "fp16 and bf16 are for GPUs; default: %(default)s")  # fmt: skip
    for name, default, text in (
        ("size", 50, "MiB of a file"),
        ("pixels", 24, "megapixels of a picture, before it is upscaled"),
        ("pictures", 20, "pictures of a page"),
        ("seconds", 600, "seconds for a picture"),
    ):
        add(f"--max-{name}", type=whole_number(), default=default, metavar="N", help=f"most {text}; default: {default}")
    return parser


def main(argv: list[str]) -> int:
    """Serve the page until Ctrl-C, SIGTERM or the end of the terminal, then delete what is left of pictures."""
    arguments = parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, frame: sys.exit(0))  # as for Ctrl-C: files are deleted on the way out
    with tempfile.TemporaryDirectory(prefix="dlgsanet-web-", ignore_cleanup_errors=True) as root:
        server = Server(arguments, Path(root))
        address = f"http://{arguments.host if arguments.host != '0.0.0.0' else 'localhost'}:{arguments.port}"
        print(f"The page is at {address} - {_reach(arguments.host)}. Ctrl-C ends it.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            server.close()
    return 0


class Server:
    """The server, which runs in threads of its own, with all its files below `root`."""

    def __init__(self, arguments: argparse.Namespace, root: Path):
        _check_address(arguments.host, arguments.port)  # before the seconds that it takes to load torch and Gradio
        from dlgsanet.device import find_device
        from dlgsanet.inference.loading import load_checkpoint
        from dlgsanet.web.device_queue import DeviceQueue
        from dlgsanet.web.page import make_page
        from dlgsanet.web.visits import Limits, Visits

        if arguments.weights:
            load_checkpoint(arguments.weights, None)  # report what is wrong with it before anybody comes
        limits = Limits(arguments.max_size, arguments.max_pixels, arguments.max_pictures, arguments.max_seconds)
        self.visits = Visits(root / "visits")
        self.queue = DeviceQueue(limits, str(find_device(arguments.device)), arguments.precision)
        self.page, settings = make_page(self.visits, self.queue, arguments.weights)
        address = {"server_name": arguments.host, "server_port": arguments.port}
        self.page.launch(prevent_thread_lock=True, **address, **settings)

    def close(self) -> None:
        """End all work."""
        self.page.close(verbose=False)
        self.visits.close_all()
        self.queue.close()


def _check_address(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        option = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        raise ArgumentError(option, f"cannot serve at {host}:{port}: {error.strerror}; choose another") from None


def _reach(host: str) -> str:
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    return "only this computer can reach it" if alone else f"everyone who can reach {host} can use it"
