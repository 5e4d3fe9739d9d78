"""A stranger's plan: read within limits, and exported to code that holds no more than it says."""

import ast
import time

import pytest

from numwatch import NumwatchError
from numwatch.plan import parse_plan
from numwatch.plan.exports import export

HEAD = "version: 1\ntarget: fp8\n"
BOMBS = {
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "depth": HEAD + "source: {a: " + "[" * 100_000 + "]" * 100_000 + "}\n",
    "depth of mappings": HEAD + "source: " + "{a: " * 50_000 + "\n",
    "tag": "version: 1\ntarget: !!python/object/apply:os.system ['touch made']\n",
    "time of day": HEAD + "source: {a: 1" + ":1" * 1_000_000 + "}\n",
    "key": HEAD + "k" * 1_000_000 + ": 1\n",
    "digits": "version: " + "9" * 1_000_000 + "\n",
    "hexadecimal": "version: 0x" + "f" * 1_000_000 + "\n",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=list(BOMBS))
def test_bombs_take_little_time_and_end_in_a_line(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = time.process_time()
    with pytest.raises(NumwatchError) as refused:
        parse_plan(text)
    assert len(str(refused.value)) < 2200
    assert str(refused.value).isprintable()
    assert time.process_time() - begun < 10
    assert list(tmp_path.iterdir()) == []


EVIL = 'x\'); __import__(\'os\').system(\'x\') #\n\r\u2028\x0c\x85print(1)\n"""\nf(2)\n"""'
ROWS = "".join(
    f"    {role}: {{format: {fmt}, recipe: current, reason: %s}}\n"
    for role, fmt in (("input", "e4m3"), ("weight", "e4m3"), ("grad_output", "e5m2"))
)


@pytest.mark.parametrize("to", ["torchao", "transformer-engine", "amp", "lightning", "megatron"])
def test_names_and_reasons_are_never_code(to):
    quoted = '"' + EVIL.encode("unicode_escape").decode().replace('"', '\\"') + '"'
    rows = ROWS % (quoted, quoted, quoted)
    text = (
        f"{HEAD}training:\n  reasons: {{{quoted}: {quoted}}}\n"
        f'modules:\n  {quoted}:\n{rows}  {quoted[:-1]}0.x":\n    keep: {quoted}\n'
    )
    harmless = text.replace(quoted[1:-1], "name")
    code, plain = export(parse_plan(text), to), export(parse_plan(harmless), to)
    if to == "megatron":
        assert [line for line in code.split("\n") if line[:1] != "#"] == [
            line for line in plain.split("\n") if line[:1] != "#"
        ]
        assert len(code.splitlines()) == len(plain.splitlines())
    else:
        assert shape(code) == shape(plain)


def shape(code):
    """The code without its texts."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)
