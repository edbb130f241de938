"""TensorRT that cannot start: another version, another CUDA than the driver's, parts missing."""

import sys
from dataclasses import replace

import pytest
from fake_tensorrt import NO_CUDA
from gpu_box import GPU, every_tensorrt, tensorrt10

from wdm_runtime.engines import select
from wdm_runtime.engines.tensorrt import precisions
from wdm_runtime.errors import EngineError, MissingDependencyError

box, box10 = every_tensorrt, tensorrt10


def test_a_tensorrt_before_10_is_refused(box10):
    box10.trt.NetworkDefinitionCreationFlag = type("Flag", (), {"__members__": {}})
    with pytest.raises(EngineError, match="expected TensorRT 10 or newer"):
        precisions("tensorrt")


def test_a_tensorrt_for_a_newer_cuda_than_the_drivers_is_refused_before_it_starts(box):
    """Started, it would end the process."""
    box.set_gpu(replace(GPU, cuda=(12, 8)))
    box.trt.behaviour["no cuda"] = True
    for ask in (lambda: select(box.kind), box.open):
        with pytest.raises(EngineError, match=r"for CUDA 13.*runs up to CUDA 12\.8") as caught:
            ask()
        replace_it = f"pip install {box.kind}-cu12 'cuda-bindings>=12.9,<13'"
        assert "Update the NVIDIA driver" in str(caught.value) and replace_it in str(caught.value)
    box.set_wheel(12)
    box.trt.behaviour.clear()
    assert select(box.kind).kind == box.kind
    box.open().close()


def test_a_driver_before_any_wheels_cuda_can_only_be_updated(box):
    box.set_gpu(replace(GPU, cuda=(11, 4)))
    with pytest.raises(EngineError, match=r"11\.4.*Update the NVIDIA driver\.$"):
        select(box.kind)


@pytest.mark.parametrize("part", ["Builder", "Runtime"])
def test_a_tensorrt_that_does_not_start_is_an_error(box, part):
    def start(self, logger):
        logger.log(box.trt.ILogger.Severity.ERROR, NO_CUDA)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    box.set_wheel(None)  # JetPack's and Debian's packages do not say what they are for
    box.patch.setattr(getattr(box.trt, part), "__init__", start)
    with pytest.raises(EngineError, match=rf"does not start.*{NO_CUDA}.*Update the NVIDIA driver"):
        box.open()
    assert box.cuda.live == 0


def test_missing_packages_name_their_extra(box10):
    box10.patch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"'\.\[gpu\]' in the clone"):
        box10.open()


@pytest.mark.parametrize(("cuda", "pin"), [((12, 6), "13"), ((13, 2), "14")])
def test_missing_cuda_bindings_are_named_and_fit_the_driver(box, cuda, pin):
    """An extra would bring those of one CUDA, and on Jetson none."""
    box.patch.setitem(sys.modules, "cuda.bindings.runtime", None)
    box.set_gpu(replace(GPU, cuda=cuda))
    box.set_wheel(cuda[0])
    install = f"pip install 'cuda-bindings>=12.9,<{pin}'"
    with pytest.raises(MissingDependencyError) as caught:
        select(box.kind)
    assert str(caught.value).endswith(install)
    assert f"{box.kind} lacks cuda-bindings ({install})." in select().why
