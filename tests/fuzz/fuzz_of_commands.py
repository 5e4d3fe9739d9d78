"""What a person types: recipes, formats, grids and commands."""

import io
import json
import os
import random
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path

from fuzz_base import OfRecord, Target
from fuzz_mutation import mutated_text
from fuzz_of_plans import PLAN
from fuzz_records import refused

from numwatch.cli import main
from numwatch.formats import get_format
from numwatch.formats.lookup import get_block_format
from numwatch.recipes.spec import parse_any_recipe, recipe_text
from numwatch.replay import grid


class SpecsTarget(Target):
    """Recipes, formats and grids as a person writes them: a letter for the kind, then the text."""

    name = "specs"
    _TEXTS = (
        *("rdelayed:history=16,margin=0", "rcurrent:power_of_two=true", "rstatic:scale=64"),
        *("rrowwise", "rblock", "rmx:rule=rceil", "rnvfp4:hadamard=true,square=yes"),
        *("rgrad-scaler:init_scale=65536,growth_interval=200", "rmegatron", "rstatic-loss-scale"),
        *("ffloat8_e4m3fn", "fBF16", "ftorch.half", "bmxfp8-e4m3", "bnvfp4"),
        *("gdelayed history=1,16 margin=0,1", "ggrad-scaler growth_factor=2,4"),
    )
    _WORDS = (
        *(":", ",", "=", " ", "history", "margin", "scale", "rule", "rceil", "floor", "true", "e"),
    )

    def seeds(self) -> list[bytes]:
        return [text.encode() for text in self._TEXTS]

    def mutate(self, rng: random.Random, data: bytes, other: bytes) -> bytes:
        texts = [one.decode("utf-8", "replace") for one in (data, other)]
        kind = rng.choice("rrrfbg") if rng.random() < 0.1 else texts[0][:1]
        return (kind + mutated_text(rng, texts[0][1:], texts[1][1:], self._WORDS)).encode(
            "utf-8", "replace"
        )

    def run(self, data: bytes) -> str:
        text = data.decode("utf-8", "replace")
        return f"{text[:1]}: " + refused(lambda: self._read(text[:1], text[1:]))

    def _read(self, kind: str, text: str) -> str:
        if kind == "f":
            return get_format(text).name
        if kind == "b":
            return get_block_format(text).name
        if kind == "g":
            recipe, *axes = text.split(" ")
            return f"{len(grid(recipe, axes)) > 1}"
        recipe = parse_any_recipe(text)
        assert parse_any_recipe(recipe_text(recipe)) == recipe or "nan" in recipe_text(recipe)
        return type(recipe).__name__


class CommandsTarget(OfRecord):
    """The command line: an argument a line."""

    name = "commands"
    _LINES = (
        *("report|RUN|--json", "report|RUN|--epoch|0|--worst|3", "report|RUN|--loss-scale"),
        *("report|RUN|--updates|--states|--shadow", "diagnose|RUN|--fail-on|warning", "formats"),
        *("diagnose|RUN|--gemms|--json", "compare|RUN|RUN|--worst|2", "formats|--json"),
        *("recommend|RUN|--target|mxfp8|--reasons", "recommend|RUN|--json|-o|out.yaml"),
        *("replay|RUN|--recipe|delayed:history=4|--format|e4m3", "export|plan.yaml|--to|torchao"),
        *("replay|RUN|--sweep|history=1,16|margin=0,1", "export|plan.yaml|--to|megatron"),
        *("replay|RUN|--recipe|grad-scaler", "replay|RUN|--recipe|static:scale=64|--json"),
    )
    _WORDS = (
        *("RUN", "--json", "--epoch", "--worst", "--target", "--recipe", "--sweep", "--format"),
        *("--to", "--fail-on", "--gemms", "--help", "--version", "plan.yaml", "none", "fp8", "amp"),
        *("never", "critical", "history=1,2", "delayed", "mx", "grad-scaler", "megatron", "e5m2"),
        *("-1", "0", "999999999999999999999", "nan", "1e9", "", " ", "\N{SNOWMAN}", "x" * 300),
        *("report", "diagnose", "compare", "recommend", "replay", "export", "formats"),
    )
    _COMMANDS = ("report", "diagnose", "compare", "recommend", "replay", "export", "formats")

    def seeds(self) -> list[bytes]:
        return [line.replace("|", "\n").encode() for line in self._LINES]

    def mutate(self, rng: random.Random, data: bytes, other: bytes) -> bytes:
        words = data.decode("utf-8", "replace").split("\n")
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(words) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                words.insert(at, rng.choice(self._WORDS))
            elif kind == 1:
                del words[at : at + 1]
            elif kind == 2:
                words[at : at + 1] = [rng.choice(self._WORDS)]
            elif at < len(words):
                words[at] = mutated_text(rng, words[at], words[at], self._WORDS).replace("\n", " ")
        return "\n".join(words).encode("utf-8", "replace")

    def run(self, data: bytes) -> str:
        words = [word.replace("\0", "") for word in data.decode("utf-8", "replace").split("\n")]
        # Nothing is trained, nothing of anybody's is run or written elsewhere.
        if words[0] not in self._COMMANDS or any("/" in word or ".." in word for word in words):
            words = ["--help"]
        out, err = io.StringIO(), io.StringIO()
        (self.directory / "plan.yaml").write_text(PLAN)
        code = _command(
            [{"RUN": "kept"}.get(word, word) for word in words], self.directory, out, err
        )
        assert code in (0, 1, 2), code
        if code == 2:
            (line,) = err.getvalue().splitlines()
            assert line.startswith("numwatch: "), line
        elif "--json" in _switches(words) and code == 0 and "--help" not in words:
            json.loads(out.getvalue(), parse_constant=_no_constant)
        return f"{words[0]} {code}"


def _switches(words: list[str]) -> set[str]:
    """The words but for the name of a file to write to, which may look like a switch."""
    return {word for before, word in pairwise(["", *words]) if before not in ("-o", "--out")}


def _command(words: list[str], directory: Path, out: io.StringIO, err: io.StringIO) -> object:
    here, kept = Path.cwd(), sys.argv
    os.chdir(directory)
    sys.argv = ["numwatch", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        return ended.code or 0
    finally:
        os.chdir(here)
        sys.argv = kept
    return None


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} in JSON")
