"""``pxfast app``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import DeviceOption, JsonOption, QuietOption, ThreadsOption

PORT = 7860


def app(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")] = PORT,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Serve a page to play with, to this machine alone: attack an image, purify it, and see where it is unlikely.

    It needs the extra 'app'. Nothing leaves the machine. Ctrl-C ends it.
    """
    import functools
    import gc
    import tempfile
    import webbrowser

    from ..base.environment import keep_gradio_here
    from ..base.extras import require
    from ..base.machine import parse_device
    from ..base.streams import note
    from .machine import engine_on, use_threads
    from .output import print_json

    parse_device(device)
    engine = engine_on(device, "auto")
    with tempfile.TemporaryDirectory(prefix="pxfast-app-") as uploads:
        keep_gradio_here(uploads)
        gradio = require("gradio", "app")
        from .playground.examination import Laboratory
        from .playground.page import FIRST, application, build
        from .playground.server import Desk, bound_socket, serve

        use_threads(threads)
        with bound_socket(port) as listening:
            laboratory = functools.cache(functools.partial(Laboratory, device=device, engine=engine, threads=threads))
            laboratory(FIRST)
            desk = Desk()
            served = application(gradio, build(gradio, laboratory, desk.done))
            url = f"http://{listening.getsockname()[0]}:{listening.getsockname()[1]}"

            def announce() -> None:
                if as_json:
                    print_json({"url": url})
                else:
                    print(url, flush=True)
                note("Ctrl-C ends it.", quiet=quiet)
                if browser:
                    webbrowser.open(url)

            try:
                serve(served, listening, desk, announce)
            finally:
                gc.freeze()  # or else the interpreter looks through all of Gradio for seconds before it ends
