"""docs/plan.md shows what exports really give."""

import re
from pathlib import Path

import pytest

from numwatch.plan import parse_plan
from numwatch.plan.exports import export

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()


@pytest.mark.parametrize("to", ["torchao", "transformer-engine", "megatron"])
def test_output_of_the_page_is_that_of_its_two_modules(to):
    (modules,) = re.findall(r"```yaml\n(modules:\n.*?)```", PAGE, re.DOTALL)
    plan = parse_plan(f"version: 1\ntarget: fp8\n{modules}", "docs/plan.md")
    (shown,) = re.findall(rf"`--to {to}`.*?:\n\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert shown == export(plan, to)
