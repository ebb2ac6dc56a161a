"""What this installation is and can do: the facts behind ``pxfast info``."""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata
from typing import Any

from ..base.version import __version__
from ..pixelcnn.shipped import SHIPPED, ModelInfo, list_models
from . import compiled, cpu
from .registry import list_engines

PACKAGES = ("torch", "torchvision", "numpy", "safetensors")


def collect() -> dict[str, Any]:
    """Versions, CPU features, engines and shipped models, as JSON-able values."""
    engines, models = list_engines(), {model.name: model for model in list_models()}
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
        "engines": [dataclasses.asdict(engine) for engine in engines],
        "default_engine": next(engine.name for engine in engines if engine.auto),
        "models": [_model(name, models.get(name)) for name in SHIPPED],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _model(name: str, model: ModelInfo | None) -> dict[str, Any]:
    if model is None:
        return {"name": name, "present": False}
    return {
        "name": name,
        "present": True,
        "config": dataclasses.asdict(model.config),
        "parameters": model.parameters,
        "bytes": model.bytes,
        "test_bits_per_dim": model.bits_per_dim,
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
            default = ", picked by 'auto'" if engine["auto"] else ""
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
