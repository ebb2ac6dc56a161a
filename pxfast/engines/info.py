"""What this installation is and can do: the facts behind ``pxfast info``."""

from __future__ import annotations

import dataclasses
import math
import platform
from importlib import metadata
from typing import Any

from safetensors import safe_open

from ..base.version import __version__
from ..kernels import trust
from ..pixelcnn.files import read_metadata
from ..pixelcnn.shipped import SHIPPED
from . import compiled, cpu
from .registry import ENGINES, Engine, select

PACKAGES = ("torch", "torchvision", "numpy", "safetensors")


def collect() -> dict[str, Any]:
    """Versions, CPU features, engines and shipped models, as JSON-able values."""
    return {
        "pxfast": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": {
            "compiled": compiled.unavailable() is None,
            "instruction_sets": list(compiled._C.cpu_isas()) if compiled.unavailable() is None else [],
            "threads": cpu.threads_of(),
        },
        "cuda": {"compiled": compiled.unavailable() is None and bool(compiled._C.cuda)},
        "engines": [_engine(engine) for engine in ENGINES.values()],
        "default_engine": select("auto").name,
        "models": [_model(name) for name in SHIPPED],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _engine(engine: Engine) -> dict[str, Any]:
    reason = engine.unavailable()
    return {
        "name": engine.name,
        "summary": engine.summary,
        "usable": reason is None,
        "reason": reason,
        "precision": engine.best_precision() if reason is None else None,
        "trial": trust.problem(engine.name) if engine.gpu and reason is None else None,
    }


def _model(name: str) -> dict[str, Any]:
    path = SHIPPED[name]
    if not path.is_file():
        return {"name": name, "present": False}
    config, notes = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    return {
        "name": name,
        "present": True,
        "config": dataclasses.asdict(config),
        "parameters": sum(math.prod(shape) for shape in shapes),
        "bytes": path.stat().st_size,
        "test_bits_per_dim": notes.get("test_bits_per_dim"),
    }


def describe(facts: dict[str, Any]) -> str:
    """:func:`collect`'s facts as text."""
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in facts["packages"].items())
    processor, lines = facts["cpu"], []
    lines.append(f"pxfast {facts['pxfast']}, Python {facts['python']}, {versions}, {facts['platform']}")
    if processor["compiled"]:
        sets = ", ".join(processor["instruction_sets"])
        lines.append(f"CPU part: compiled; instruction sets usable here: {sets}; {processor['threads']} threads")
    else:
        lines.append("CPU part: not compiled")
    cuda = "compiled" if facts["cuda"]["compiled"] else "not in this installation"
    lines += [f"CUDA part: {cuda}", "", "engines"]
    for engine in facts["engines"]:
        if engine["usable"]:
            default = ", picked by 'auto'" if engine["name"] == facts["default_engine"] else ""
            failed = f", but passed over by 'auto': {engine['trial']}" if engine["trial"] else ""
            state = f"usable, {engine['precision']}{default}{failed}"
        else:
            state = f"not usable: {engine['reason']}"
        lines.append(f"  {engine['name']:<14} {engine['summary']}; {state}")
    lines += ["", "shipped models"]
    for model in facts["models"]:
        if not model["present"]:
            lines.append(f"  {model['name']:<14} missing from this installation")
            continue
        config, bits = model["config"], model["test_bits_per_dim"]
        lines.append(
            f"  {model['name']:<14} {config['channels']}x{config['image_size'][0]}x{config['image_size'][1]}, "
            f"{config['head']} head, filters {config['filters']}, resnets {config['resnets']}, "
            f"{model['parameters'] / 1e6:.2f} M parameters, {model['bytes'] / 1e6:.1f} MB, "
            + ("bits/dim not measured" if bits is None else f"{bits:.4f} bits/dim on the test set")
        )
    return "\n".join(lines)
