"""Imports go down only: each module imports nothing of its own floor or above."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up; a module may import from every floor below its own.
RUNTIME_FLOORS = [
    {"began", "errors", "records", "protobuf_wire", "plain_file", "io.limits", "io.wire"}
    | {"container", "bench"},
    {"onnx_gate", "signing", "input_hash"}
    | {
        "wavelets",
        "diffusion",
        "transform",
        "noise",
        "orientation",
        "grid",
        "tiling",
        "version",
        "console",
    }
    | {"statistics", "plan", "settings", "suspect", "cache", "elf", "machine"}
    | {"engines.probe"}
    | {"io.atomic", "io.child", "io.classic", "io.dataset", "io.dates"}
    | {"io.grib_products", "io.hdf5_filters", "io.netcdf_library", "io.units"},
    {"onnx_weights", "picture", "samplers", "skill", "bench.meters", "blocks", "engines.options"},
    {"presets", "block_scaling", "faint_rain"},
    {"precision"},
    {"manifest"},
    {"bundle", "field", "consistency", "shared_options"}
    | {"io.choice", "io.grib_header", "io.odim_header"}
    | {"engines.plan_cache", "engines.tensorrt_module"}
    | {"engines.engine"},
    {
        "engines.cuda_memory",
        "engines.fixed_batch",
        "engines.ort",
        "engines.ort_libraries",
        "engines.numpy_transform",
        "engines.openvino",
        "engines.step",
        "select",
    }
    | {
        "io.cf",
        "io.coordinates",
        "io.field_wire",
        "io.foreign",
        "io.grib_packing",
        "io.grib_series",
        "io.stored",
    },
    {"engines.ort_cuda", "engines.tensorrt_plan", "engines.device_step", "io.times"},
    {"engines.tensorrt", "io.accumulation", "io.grib2", "io.layout", "io.odim"},
    {"engines.tensorrt_step", "engines.ort_cuda_step"},
    {"engines.families"},
    {"engines.choice"},
    {"engines"},
    {"conditioning"},
    {"golden", "remembered", "stepping", "timing", "engines.watched", "io.precipitation"},
    {"doctor", "batching", "bench.report", "fused", "io.netcdf", "io.xarray_reader"},
    {"sampling", "opening"},
    {"downscale", "selftest", "bench.models", "io.array_output", "io.compare", "io.ensemble"}
    | {"io.formats", "io.reader"},
    {"io"},
    {"plot", "bench.child", "bench.turns", "io.grib_output", "io.worker", "io.zarr_output"}
    | {"tally"},
    {"io.writer", "bench.processes"},
    {"job", "bench.runner", "tune"},
    {"labelled", "latency", "replay", "bench.chart", "bench.tables", "tune_report"},
    {"panels"},
    {"cli_options"},
    {"cli_engines", "cli_bench", "cli_tune"},
    {"cli"},
]


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        yield ".".join(p for p in parts if p != "__init__"), path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(module):
    for level, names in enumerate(RUNTIME_FLOORS):
        if module in names:
            return level
    return None


@pytest.mark.parametrize(("module", "path"), list(modules("wdm_runtime")))
def test_runtime_imports_go_down(module, path):
    if module == "":
        return
    assert floor(module) is not None, f"{module} has no floor: give it one"
    for name in imports(path):
        if name.startswith("wdm_runtime."):
            other = floor(name.removeprefix("wdm_runtime."))
            lower = other is None or other < floor(module)  # None: a name inside a module
            assert lower, f"{module} imports {name} from its own floor or above"


@pytest.mark.parametrize(("module", "path"), list(modules("wdm_runtime")))
def test_runtime_never_imports_the_export_side(module, path):
    heavy = {"wdm_export", "torch", "onnx", "pytorch_wavelets", "scipy", "xarray", "pandas"}
    assert not heavy & {name.partition(".")[0] for name in imports(path)}


def test_no_pickles_anywhere():
    for package in ("wdm_runtime", "wdm_export", "benches"):
        for _, path in modules(package):
            names = {name.partition(".")[0] for name in imports(path)}
            assert not names & {"pickle", "_pickle", "dill", "cloudpickle", "joblib"}, path
            assert not names & {"shelve", "marshal", "copyreg"}, path
            text = path.read_text()
            assert "torch.load(" not in text and "allow_pickle=True" not in text, path
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call):
                    _check_call(node, path)


def _check_call(call, path):
    """No code from data: not by NumPy's or torch's pickles, not by Python itself."""
    name = ast.unparse(call.func)
    assert name not in ("eval", "exec", "compile", "__import__", "torch.load"), path
    assert name.rpartition(".")[2] != "read_pickle", path
    for keyword in call.keywords:
        if keyword.arg == "allow_pickle":
            assert isinstance(keyword.value, ast.Constant) and keyword.value.value is False, path
