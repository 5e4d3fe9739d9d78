"""Plans: their YAML, and what they are exported to."""

import ast
import json
import random
from pathlib import Path

import yaml
from fuzz_base import Target
from fuzz_mutation import TEXTS, mutated_bytes, mutated_text
from fuzz_records import refused

import numwatch
from numwatch.errors import NumwatchError
from numwatch.plan import parse_plan, plan_text
from numwatch.plan.exports import EXPORTS, export

PLAN = """\
version: 1
target: fp8
source: {run: runs/a, steps: 200, seen: [1, 2.5, .nan, null, true]}
training:
  compute: bf16
  weights: fp32
  update_rounding: nearest
  loss_scale: {init: 65536.0, growth_interval: 2000, reason: overflows}
  reasons: {compute: BF16 has the range}
modules:
  net.0.fc:
    input: {format: e4m3, recipe: "delayed:history=16,margin=0", reason: fits}
    weight: {format: e4m3, recipe: "delayed:history=16,margin=0"}
    grad_output: {format: e5m2, recipe: "delayed:history=16,margin=0", rounding: nearest}
    reason: measured
  net.1.fc:
    input: {format: e4m3, recipe: current}
    weight: {format: e4m3, recipe: current}
    grad_output: {format: e5m2, recipe: current}
  net.2.fc: {keep: its gradients flush}
predicted:
  net.0.fc:
    input:
      of: e4m3 delayed
      flushed: [0.1, 0.0, 0.2]
      saturated: 0.0
      median_relative_error: 0.02
      sqnr: 30.0
"""
_KINDS = (
    ("nvfp4", "nvfp4", "nvfp4:hadamard=true", "stochastic"),
    ("mxfp8", "mxfp8-e4m3", "mx:rule=rceil", "nearest"),
    ("mxfp4", "mxfp4", "mx", "nearest"),
    ("fp8", "e4m3", "rowwise", "nearest"),
    ("fp8", "block-fp8-128", "block", "nearest"),
)


def _plan_of(target: str, fmt: str, recipe: str, rounding: str) -> str:
    operand = f"{{format: {fmt}, recipe: '{recipe}', rounding: {rounding}}}"
    rows = "".join(f"    {role}: {operand}\n" for role in ("input", "weight", "grad_output"))
    return f"version: 1\ntarget: {target}\nmodules:\n  a.0.b:\n{rows}  a.1.b: {{keep: x}}\n"


_AMP = (
    "version: 1\ntarget: amp\ntraining: {compute: fp16, weights: fp32, "
    "loss_scale: {init: 1024, growth_interval: null}}\n"
)
_INT8 = (
    "version: 1\ntarget: int8-weights\nmodules:\n  a: {weight: {format: int8, recipe: rowwise}}\n"
)
_PLAN_WORDS = (
    *("version: 1", "target: fp8", "modules:", "training:", "predicted:", "source:", "keep: x"),
    *("{", "}", "[", "]", ", ", ": ", "- ", "&a ", "*a", "!!python/object/apply:os.system ", "!t "),
    *("---\n", "...\n", "%YAML 1.1\n", "? ", "| ", "> ", "'", '"', "#", "<<: ", "0x1F", "1:30:00"),
    *("e4m3", "e5m2", "fp16", "nvfp4", "mxfp4", "rowwise", "current", "static:scale=64", "block"),
    *("stochastic", "nearest", "2001-01-01", "0b101", "1_000", ".inf", "~", "input", "weight"),
)


class PlanTarget(Target):
    """A plan's YAML: read, written, read again and exported to everything."""

    name = "plan"

    def seeds(self) -> list[bytes]:
        return [
            text.encode() for text in (PLAN, _AMP, _INT8, *(_plan_of(*kind) for kind in _KINDS))
        ]

    def mutate(self, rng: random.Random, data: bytes, other: bytes) -> bytes:
        if rng.random() < 0.1:
            return mutated_bytes(rng, data, other)
        texts = [one.decode("utf-8", "replace") for one in (data, other)]
        return mutated_text(rng, *texts, _PLAN_WORDS).encode("utf-8", "surrogatepass")

    def run(self, data: bytes) -> str:
        path = self.directory / "plan.yaml"
        path.write_bytes(data)
        return refused(lambda: self._read(path))

    def _read(self, path: Path) -> str:
        plan = numwatch.load_plan(path)
        text = plan_text(plan)
        assert repr(parse_plan(text)) == repr(plan)  # by text: NaN equals nothing
        return "plan: " + " ".join(f"{to}:{exported(plan, to)}" for to in EXPORTS)


class ExportsTarget(PlanTarget):
    """Plans in order whose names and reasons are anything: the code they become calls no more."""

    name = "exports"

    def mutate(self, rng: random.Random, data: bytes, other: bytes) -> bytes:
        tree = _with_modules(data)
        if tree is None:  # any other will do
            tree = yaml.safe_load(rng.choice(self.seeds()[:1] + self.seeds()[2:]))
        names = list(tree["modules"])
        name = rng.choice(names)
        text = rng.choice(
            (*TEXTS[:-1], *_HOSTILE, mutated_text(rng, str(name), str(name), _HOSTILE))
        )
        module = tree["modules"].pop(name)
        kind = rng.randrange(4)
        if kind == 0:
            tree["modules"][text[:800]] = module
        elif kind == 1:
            tree["modules"][name] = {"keep": text}
        elif kind == 2 and isinstance(module, dict) and "keep" not in module:
            tree["modules"][name] = {**module, "reason": text}
        else:
            tree["modules"][name] = module
            tree["modules"][f"{rng.choice(TEXTS[:12])[:20]}.{rng.randrange(40)}.x"] = module
            training = tree.setdefault("training", {})
            if isinstance(training, dict):
                training["reasons"] = {"compute": text, "weights": text}
        try:
            return yaml.safe_dump(tree, allow_unicode=False, sort_keys=False).encode()
        except (yaml.YAMLError, UnicodeError):
            return data


def _with_modules(data: bytes) -> dict | None:
    try:
        tree = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    modules = tree.get("modules") if isinstance(tree, dict) else None
    return tree if isinstance(modules, dict) and modules else None


_HOSTILE = (
    "\nimport os; os.system('x')\n",
    "'); os.system('x'); ('",
    '"""\nos.system("x")\n"""',
    "\r\nprint(1)",
    "\N{LINE SEPARATOR}print(1)",
    "\x0cprint(1)",
    "\x85print(1)",
    "\\",
    "\\'",
    "{x}",
    "${IFS}",
    "$(touch x)",
    "`touch x`",
    "x --flag",
)


def exported(plan: numwatch.Plan, to: str) -> str:
    """Exports a plan; says how it went. The code holds no call that a harmless plan's has not."""
    try:
        text = export(plan, to)
    except NumwatchError:
        return "refused"
    if to == "json":
        json.loads(text)
    elif to == "megatron":
        assert not set("`$;|&<>\r\x0b\x0c\x85\u2028\u2029") & set(_flags(text)), text
    else:
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
        }
        assert calls <= _CALLS, calls - _CALLS
    return "done"


def _flags(text: str) -> str:
    return "".join(line for line in text.split("\n") if not line.startswith("#"))


_CALLS = {
    *("set", "sorted", "model.named_modules", "LookupError", "planned", "CastConfig", "model.to"),
    *("convert_to_float8_training", "Float8LinearConfig", "MXFP8Linear", "swap_linear_layers"),
    *("NVFP4TrainingConfig", "quantize_", "Int8WeightOnlyConfig", "te.autocast", "model"),
    *("DelayedScaling", "Float8CurrentScaling", "MXFP8BlockScaling", "Float8BlockScaling"),
    *("NVFP4BlockScaling", "torch.autocast", "torch.amp.GradScaler", "Trainer", "MixedPrecision"),
    *("_AdamW", "model.parameters", "load_plan", "Emulate", "ApplyPlan", "EmulatePrecision"),
}
