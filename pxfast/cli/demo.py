"""``pxfast demo``."""

from __future__ import annotations

from .options import DeviceOption, ForceOption, JsonOption, OptionalOutOption, QuietOption, ThreadsOption


def demo(
    out: OptionalOutOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Purify attacked images that are shipped with the package, and draw the result: OUT, or pxfast-demo.png here."""
    from . import demonstration
    from .machine import engine_on, use_threads
    from .output import print_json

    use_threads(threads)
    shown = demonstration.run(
        out, force=force, device=device, engine=engine_on(device, "auto"), threads=threads, progress=not quiet
    )
    if as_json:
        print_json(demonstration.facts(shown))
    else:
        print("\n".join(demonstration.lines(shown)))
