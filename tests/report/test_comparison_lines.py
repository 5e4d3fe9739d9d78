import math

from numwatch.diagnose.compare import Comparison, Difference
from numwatch.diagnose.gemms import Gemm
from numwatch.report.comparison_lines import comparison_lines
from numwatch.report.gemm_lines import gemm_lines, gemm_rows


def comparison(*differences, only_b=()):
    first, others = (differences[0], differences[1:]) if differences else (None, ())
    return Comparison("a/numwatch", "b/numwatch", 40, 9, first, others, (), only_b)


def text_of(lines):
    return "\n".join(line.plain for line in lines)


AMAX = Difference("fc:input", "amax", 20, 3.0, 12.0, 2.0, 0.25, 3.0, 1.0)
LOSS = Difference("loss", "loss", 30, 2.5, math.inf, math.inf, 0.0, math.inf, None)
FLUSHED = Difference("fc:grad_output", "flushed", 30, 0.0, 0.31, 0.31, 0.01, 0.4, 5.0)


def test_runs_that_are_alike():
    assert "nothing parts by more than its own noise" in text_of(comparison_lines(comparison(), 3))


def test_what_parts_first_is_a_sentence_and_the_rest_a_table():
    text = text_of(comparison_lines(comparison(AMAX, LOSS, FLUSHED, only_b=("head:input",)), 1))
    assert (
        "parts first amax of fc:input from step 20: 3.0e+00 against 1.2e+01, 2 bits apart" in text
    )
    assert "loss  " in text
    assert "fc:grad_output" not in text
    assert "1 more figure part by less" in text
    assert "the second run alone has head:input" in text
    whole = text_of(comparison_lines(comparison(AMAX, LOSS, FLUSHED), 9))
    assert "31.0 %" in whole
    assert "inf" in whole


def test_gemms_fit_or_are_to_be_padded():
    gemm = Gemm("head", ("forward", "wgrad"), "bfloat16", 64, 65, 32, 1, 2, contiguous=False)
    text = text_of(gemm_lines([gemm]))
    assert "N to 72" in text
    assert "N to 80" in text
    assert "copied" in text
    (row,) = gemm_rows([gemm])
    assert row["padding"]["bf16"] == {"n": 72}
    assert row["padding"]["fp8"] == {"n": 80}
    assert "no GEMM was noted" in text_of(gemm_lines([]))
