"""The environment variables that pxfast reads when it runs. They set defaults of arguments, and are read here alone.

Every function reads its variable at every call, and raises ValueError, naming it, for a value that it can't have. An
argument that is given wins over the variable. ``docs/environment.md`` lists them all.
"""

from __future__ import annotations

import os
from pathlib import Path

MOST_THREADS = 1 << 16
ORDERS = ("auto", "sequential", "speculative")


def threads() -> int | None:
    """``PXFAST_THREADS``: threads of the CPU engine; None: as many as this process may use processors."""
    return _positive("PXFAST_THREADS")


def instruction_set() -> str | None:
    """``PXFAST_ISA``: the CPU engine's instruction set, by its name; None: the best one here. The engine checks it."""
    return os.environ.get("PXFAST_ISA") or None


def order() -> str:
    """``PXFAST_ORDER``: the order in which the compiled engines evaluate: 'sequential', 'speculative' or 'auto'."""
    wish = os.environ.get("PXFAST_ORDER") or "auto"
    if wish not in ORDERS:
        raise ValueError(f"PXFAST_ORDER must be {', '.join(ORDERS[:-1])} or {ORDERS[-1]}, got {wish!r}")
    return wish


def cuda_team() -> int | None:
    """``PXFAST_CUDA_TEAM``: blocks that decode images together on a GPU; None: by the batch size."""
    return _positive("PXFAST_CUDA_TEAM")


def cuda_clusters() -> bool:
    """``PXFAST_CUDA_CLUSTERS``: whether teams of blocks are clusters; by default they aren't."""
    return _switch("PXFAST_CUDA_CLUSTERS", default=False)


def cuda_wgmma() -> bool:
    """``PXFAST_CUDA_WGMMA``: whether bf16 products may use wgmma; by default they may."""
    return _switch("PXFAST_CUDA_WGMMA", default=True)


def trial() -> bool:
    """``PXFAST_TRIAL``: whether a GPU's kernels are tried before they are relied upon; by default they are."""
    return _switch("PXFAST_TRIAL", default=True)


def of_a_trial() -> dict[str, str]:
    """The variables of the process that tries a GPU's kernels: this one's, of pxfast's those alone that choose kernels.

    Others, such as a team that this GPU is too small for, would make the trial fail and its verdict last.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PXFAST_")}
    return {**kept, "PXFAST_CUDA_WGMMA": str(int(cuda_wgmma())), "PXFAST_TILES": str(tiles_file())}


def triton_settings() -> list[str]:
    """What the environment tells Triton of how to compile, as ``NAME=value``; its folders have no part in that."""
    folders = ("_HOME", "_DIR")
    return sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("TRITON_") and not k.endswith(folders))


def compiler() -> list[str]:
    """``CXX``: the C++ compiler that torch.compile takes, as builds do; none where it is not set."""
    wish = os.environ.get("CXX")
    return [wish] if wish else []


def tensorboard() -> bool:
    """``PXFAST_TENSORBOARD``: whether trainings write TensorBoard's files where it is installed; by default they do."""
    return _switch("PXFAST_TENSORBOARD", default=True)


def tiles_file() -> Path:
    """``PXFAST_TILES``: where ``pxfast tune`` keeps its choices; by default in the user's folder of settings."""
    return Path(os.environ.get("PXFAST_TILES") or _user_folder("XDG_CONFIG_HOME", ".config") / "tiles.json")


def cache_folder() -> Path:
    """Where what can be made again is kept: ``pxfast`` in the user's folder of caches (``XDG_CACHE_HOME``)."""
    return _user_folder("XDG_CACHE_HOME", ".cache")


def draw_to_files() -> None:
    """Set ``MPLBACKEND`` for this process: a notebook's need not be installed here, and without it matplotlib fails."""
    os.environ["MPLBACKEND"] = "agg"


def wrap_somewhere() -> None:
    """Forget ``COLUMNS`` where it is 0, which some terminals set: the help would have no room for a letter."""
    columns = os.environ.get("COLUMNS", "")
    if columns and not columns.strip("0"):
        del os.environ["COLUMNS"]


def keep_gradio_here(folder: str) -> None:
    """Tell Gradio, before it is imported, to ask no host for anything and to keep uploads in ``folder``."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=folder,
        GRADIO_ROOT_PATH="",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_OFFLINE="1",
    )


def _user_folder(variable: str, default: str) -> Path:
    given = os.environ.get(variable)
    if given and os.path.isabs(given):  # others mean nothing, says XDG's specification
        return Path(given) / "pxfast"
    try:
        return Path.home() / default / "pxfast"
    except RuntimeError:  # this user has no home: in this folder nothing is found, and nothing can be kept
        return Path(os.devnull, "pxfast")


def _positive(variable: str) -> int | None:
    wish = os.environ.get(variable)
    if not wish:
        return None
    # the length comes first: Python refuses to read thousands of digits, by another error
    if not wish.isdecimal() or len(wish) > 20 or not 1 <= int(wish) <= MOST_THREADS:
        raise ValueError(f"{variable} must be an integer in 1..{MOST_THREADS}, got {wish[:60]!r}")
    return int(wish)


def _switch(variable: str, *, default: bool) -> bool:
    wish = os.environ.get(variable) or str(int(default))
    if wish not in ("0", "1"):
        raise ValueError(f"{variable} must be 0 or 1, got {wish!r}")
    return wish == "1"
