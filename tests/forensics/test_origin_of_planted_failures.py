import pytest
from planted import (
    SINCE,
    MaskedRow,
    NaiveSoftmax,
    NarrowNorm,
    SafeMask,
    ZeroNorm,
    fit,
    fp16,
    model,
    origins,
)


@pytest.mark.parametrize(
    ("attention", "operation", "source", "value"),
    [
        (NaiveSoftmax, "aten.exp.default", "raised = torch.exp(scores.half())", "inf"),
        (
            NarrowNorm,
            "aten.pow.Tensor_Scalar",
            "variance = q.square().mean(-1, keepdim=True)",
            "inf",
        ),
        (ZeroNorm, "aten.div.Tensor", "q = q / length", "nan"),
        (MaskedRow, "aten._softmax.default", "hidden, -math.inf).softmax(-1)", "nan"),
    ],
)
def test_operation_and_line_are_named_on_first_occurrence(
    attention, operation, source, value, tmp_path
):
    _, run = fit(model(attention), tmp_path, **fp16())
    found, *others = origins(run)
    assert found["step"] == SINCE
    assert (found["phase"], found["module"]) == ("forward", "blocks.1.attn")
    assert found["operation"] == operation
    assert found["source"].startswith("planted.py:")
    assert " in attend: " in found["source"]
    assert source in found["source"]
    assert found["value"] == value
    assert not others


def test_intended_masks_are_nobodys_fault(tmp_path):
    _, run = fit(model(SafeMask), tmp_path, **fp16(2.0**30))
    (found,) = origins(run)
    assert (found["step"], found["phase"]) == (0, "backward")
