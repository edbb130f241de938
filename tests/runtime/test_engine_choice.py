"""Which engine is taken: the best that works under ``auto``, what was asked for or an error."""

import importlib.metadata
import sys
from dataclasses import replace

import pytest

from wdm_runtime.engines import openvino, select
from wdm_runtime.engines.families import FAMILIES
from wdm_runtime.errors import EngineError, MissingDependencyError


@pytest.fixture
def openvino_does(monkeypatch):
    """Pretend a CPU: which one this machine has is not the test's to choose."""

    def use(*precisions):
        family = replace(FAMILIES["openvino"], probe=lambda: precisions)
        monkeypatch.setitem(FAMILIES, "openvino", family)

    return use


@pytest.fixture
def no_openvino(monkeypatch):
    openvino._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    yield
    openvino._core.cache_clear()


@pytest.fixture
def no_onnxruntime(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_auto_takes_bf16_where_the_cpu_has_it(openvino_does):
    openvino_does("bf16", "fp32")
    chosen = select()
    assert (chosen.kind, chosen.precision, chosen.graph) == ("openvino", "bf16", "fp32")
    assert chosen.why == "engine: openvino in bf16, the fastest that works here."


def test_auto_says_why_it_is_not_the_fastest(openvino_does):
    openvino_does("fp32")
    chosen = select()
    assert (chosen.kind, chosen.precision, chosen.graph) == ("ort-cpu", "fp32", "fp32")
    assert "openvino does not compute in bf16 on this machine" in chosen.why


def test_auto_without_openvino_says_how_to_get_it(no_openvino):
    chosen = select()
    assert (chosen.kind, chosen.precision) == ("ort-cpu", "fp32")
    assert "pip install '.[openvino]' in the clone" in chosen.why
    assert "\n" not in chosen.why


def test_auto_takes_openvino_where_it_is_alone(openvino_does, no_onnxruntime):
    openvino_does("fp32")
    chosen = select()
    assert (chosen.kind, chosen.precision) == ("openvino", "fp32")
    assert "pip install '.[cpu]' in the clone" in chosen.why


def test_auto_keeps_to_the_precision_that_was_asked_for(openvino_does):
    openvino_does("bf16", "fp32")
    assert select("auto", "fp32").kind == "ort-cpu"
    chosen = select("auto", "fp16")
    assert (chosen.kind, chosen.precision, chosen.graph) == ("ort-cpu", "fp16", "fp16")


def test_a_precision_nothing_has_is_an_error(openvino_does):
    openvino_does("fp32")
    with pytest.raises(EngineError, match=r"No engine works here in bf16.*another --precision"):
        select("auto", "bf16")


def test_nothing_installed_names_every_remedy(no_openvino, no_onnxruntime):
    with pytest.raises(EngineError, match="No engine works here") as caught:
        select()
    for extra in ("cpu", "openvino"):
        assert f"pip install '.[{extra}]' in the clone" in str(caught.value)


def test_what_was_asked_for_by_name_is_never_replaced(openvino_does):
    openvino_does("fp32")
    assert select("openvino").precision == "fp32"
    with pytest.raises(EngineError, match=r"'bf16'; engine 'openvino' does fp32 on this machine"):
        select("openvino", "bf16")
    with pytest.raises(EngineError, match="engine 'ort-cpu' does fp32, fp16"):
        select("ort-cpu", "bf16")


def test_an_engine_that_is_not_installed_is_an_error_by_name(no_openvino):
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[openvino\]' in the clone"):
        select("openvino")


def test_unknown_names_list_the_known():
    with pytest.raises(EngineError, match="expected one of auto, ort-cpu, openvino"):
        select("cuda")
    with pytest.raises(EngineError, match="bf16"):
        select("auto", "int8")


def test_what_several_engines_lack_is_told_once(monkeypatch):
    def nothing():
        raise EngineError("The driver shows no GPU.")

    for kind in ("tensorrt", "tensorrt-rtx", "ort-cuda"):
        monkeypatch.setitem(FAMILIES, kind, replace(FAMILIES[kind], probe=nothing))
    assert select().why.count("The driver shows no GPU.") == 1
