"""What holds on a GPU whatever computes there: TensorRT of any version, or ONNX Runtime's CUDA."""

import numpy as np
import pytest
from conftest import feeds
from gpu_box import OrtBox, every_engine
from one_tile import TILE

from wdm_runtime.errors import EngineError

box = every_engine


def test_answers_belong_to_the_caller(box):
    engine = box.open()
    first = engine.run(feeds(1, seed=0))
    kept = first.copy()
    engine.run(feeds(1, seed=1))
    engine.close()
    np.testing.assert_array_equal(first, kept)


def test_wrong_inputs_are_refused_not_broadcast(box):
    engine = box.open(batch=2)
    given = feeds(2)
    for wrong in (
        {**given, "x": given["x"][..., :1]},
        {**given, "condition": given["condition"][:1]},
        {name: given[name] for name in ("x", "t")},
        feeds(0),
    ):
        with pytest.raises(EngineError, match="failed on inputs"):
            engine.run(wrong)


def test_a_graph_with_free_sizes_is_refused(box):
    with pytest.raises(EngineError, match=r"no free size but the first.*ort-cpu"):
        box.open("dwt")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda given, values: np.zeros_like(values), "gives the same for every 'x'"),
        (lambda given, values: given["x"], "gives the same for every 'condition'"),
        (lambda given, values: given["x"] + given["condition"], "gives the same for every 't'"),
        (lambda given, values: values * np.nan, "not finite"),
    ],
    ids=["constant", "no condition", "no time", "nan"],
)
def test_kernels_that_answer_wrongly_are_an_error(box, answer, message):
    box.behaviour["answer"] = answer
    with pytest.raises(EngineError, match=message):
        box.open()
    assert isinstance(box, OrtBox) or box.cuda.live == 0


def test_states_that_do_not_fit_are_refused(box):
    engine = box.open_step(batch=2)
    x = np.zeros((3, *TILE), np.float32)
    for wrong in ((x, x), (x[:1], x[:2]), (x[:0], x[:0]), (x[:1, ..., :1], x[:1, ..., :1])):
        with pytest.raises(EngineError, match=r"failed on states.*up to 2 of"):
            engine.load(*wrong)
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.load(x[:1], x[:1])
