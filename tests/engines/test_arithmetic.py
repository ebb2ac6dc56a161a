"""What stored results of decodes are kept under: all that decides their bits."""

import dataclasses

import pytest

from pxfast.engines import arithmetic, registry
from pxfast.engines.arithmetic import arithmetic_of
from pxfast.engines.compiled import _C


def test_what_auto_takes_is_named() -> None:
    chosen = registry.select("auto")
    assert arithmetic_of() == arithmetic_of(chosen.name, chosen.best_precision())
    assert arithmetic_of(precision="fp32")["precision"] == "fp32"
    assert arithmetic_of("reference")["instructions"].startswith("cpu ")


@pytest.mark.skipif(_C is None, reason="the compiled engine is not built")
def test_instruction_sets_are_told_apart(monkeypatch) -> None:
    found = []
    for isa in _C.cpu_isas():
        monkeypatch.setenv("PXFAST_ISA", isa)
        found.append(arithmetic_of("cpu", "fp32"))
    assert [each["instructions"] for each in found] == list(_C.cpu_isas())


@pytest.mark.parametrize(("engine", "variable"), [("cuda", "PXFAST_CUDA_WGMMA"), ("triton", "PXFAST_TILES")])
def test_of_a_gpu_what_chooses_its_kernels_counts(monkeypatch, tmp_path, engine: str, variable: str) -> None:
    """With a stand-in for the device."""
    here = dataclasses.replace(registry.ENGINES[engine], unavailable=lambda: None)
    monkeypatch.setattr(arithmetic, "select", lambda name: here)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    (tmp_path / "tiles.json").write_text("{}")
    before = arithmetic_of(engine)
    monkeypatch.setenv(variable, "0" if engine == "cuda" else str(tmp_path / "tiles.json"))
    after = arithmetic_of(engine)
    assert before["instructions"] != after["instructions"]
    assert {**before, "instructions": ""} == {**after, "instructions": ""}
    assert after["instructions"].startswith("a GPU, ")
