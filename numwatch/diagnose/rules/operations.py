"""Rules about the operations of the audited step: what runs low, and how GEMMs lie."""

from collections.abc import Iterable, Iterator
from typing import Any

from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.gemms import Gemm, gemm_table, operand_dtype
from numwatch.diagnose.thresholds import (
    MISALIGNED_SHARE,
    MISALIGNED_WORK,
    MULTIPLES,
    RESULT_HEADROOM,
)
from numwatch.formats import get_format

MAX_OTHERS = 20
_LOW = ("float16", "bfloat16")
_FORMATS = {"float16": "fp16", "bfloat16": "bf16", "int8": "int8", "float32": "tf32"}
_SENSITIVE = {
    **dict.fromkeys(("exp", "exp2", "expm1", "pow", "square"), "powers"),
    **dict.fromkeys(("_softmax", "_log_softmax", "logsumexp"), "softmax"),
    **dict.fromkeys(("log", "log1p", "log2", "reciprocal", "rsqrt"), "logarithms and reciprocals"),
    **dict.fromkeys(("cumprod", "cumsum", "mean", "prod", "sum"), "sums"),
    **dict.fromkeys(("linalg_vector_norm", "norm", "std", "var", "var_mean"), "variances"),
    **dict.fromkeys(
        (
            *("binary_cross_entropy", "binary_cross_entropy_with_logits", "huber_loss", "kl_div"),
            *("l1_loss", "mse_loss", "nll_loss2d_forward", "nll_loss_forward", "smooth_l1_loss"),
        ),
        "losses",
    ),
}
_ACCUMULATION = {
    "cuda.matmul.allow_fp16_accumulation": ("float16", "FP16 products are summed in FP16"),
    "cuda.matmul.allow_fp16_reduced_precision_reduction": (
        "float16",
        "partial sums of FP16 products may be joined in FP16",
    ),
    "cuda.matmul.allow_bf16_reduced_precision_reduction": (
        "bfloat16",
        "partial sums of BF16 products may be joined in BF16",
    ),
}
_AUTOCAST = "PyTorch, Automatic Mixed Precision: operations that autocast to float32"
_CUBLAS = "NVIDIA, Matrix Multiplication Background User's Guide"


def sensitive_operation_low(evidence: Evidence) -> Iterator[Finding]:
    """Softmax, exponentials, powers, sums, variances and losses computed in FP16 or BF16."""
    rows = [row for row in _audited(evidence) if _sensitive(row)]
    limit = get_format("fp16").max / RESULT_HEADROOM
    close = [row for row in rows if row["output"] == "float16" and not (row["amax"] or 0) < limit]
    rest = [row for row in rows if row not in close]
    if close:
        row = close[0]
        yield _finding(
            evidence,
            "sensitive-operation-low",
            "warning",
            close,
            (Figure("amax of the result", row["amax"], row["step"]), *_count(close)),
            f"{_said(row)} computes in FP16, which ends at 65504, and its results are close to it",
            "compute it in FP32: `x.float()` inside `torch.autocast(device_type, enabled=False)`",
            _AUTOCAST,
        )
    if rest:
        kinds = sorted({kind for row in rest if (kind := _sensitive(row))})
        yield _finding(
            evidence,
            "sensitive-operation-low",
            "info",
            rest,
            _count(rest),
            f"the model computes {', '.join(kinds)} in {_formats(row['output'] for row in rest)}, "
            f"first by {_said(rest[0])}",
            "where exactness matters compute them in FP32: `x.float()` inside "
            "`torch.autocast(device_type, enabled=False)`",
            _AUTOCAST,
        )


def misaligned_gemm(evidence: Evidence) -> Iterator[Finding]:
    """GEMMs whose M, N or K are no multiples of what the format they run in asks for."""
    rows = _audited(evidence)
    gemms = [gemm for gemm in gemm_table(rows) if gemm.m is not None]
    tf32 = evidence.run.flags.get("float32_matmul_precision", "highest") != "highest"
    missed = [gemm for gemm in gemms if (fmt := _runs_in(gemm, tf32=tf32)) and gemm.padding(fmt)]
    if not missed:
        return
    whole = sum(gemm.multiplications for gemm in gemms)
    share = sum(gemm.multiplications for gemm in missed) / max(whole, 1)
    worst = max(missed, key=lambda gemm: gemm.multiplications)
    fmt = _runs_in(worst, tf32=tf32) or "fp16"
    on_cuda = evidence.run.device.startswith("cuda")
    hurts = on_cuda and share >= MISALIGNED_SHARE and whole >= MISALIGNED_WORK
    step = rows[0]["step"]
    modules = list(dict.fromkeys([worst.module, *(gemm.module for gemm in missed)]))
    yield Finding(
        rule="misaligned-gemm",
        severity="warning" if hurts else "info",
        step=step,
        slot=worst.module or None,
        evidence=(
            Figure("misaligned GEMMs", len(missed), step),
            Figure("multiplications in them, share", share, step),
        ),
        cause=f"{worst.module or 'a product'} multiplies [{worst.m}, {worst.k}] by "
        f"[{worst.k}, {worst.n}], and {_upper(fmt)} Tensor Cores want multiples of "
        f"{MULTIPLES[fmt]}",
        cure=_padding_text(worst, fmt),
        source=_CUBLAS,
        order=_order(evidence, worst.module),
        others=tuple(module for module in modules[1:] if module)[:MAX_OTHERS],
    )


def non_contiguous_gemm(evidence: Evidence) -> Iterator[Finding]:
    """GEMMs with an operand that BLAS must copy first."""
    rows = [row for row in _audited(evidence) if row["contiguous"] is False]
    if rows:
        yield _finding(
            evidence,
            "non-contiguous-gemm",
            "info",
            rows,
            _count(rows),
            f"an operand of {_said(rows[0])} lies neither by rows nor by columns, so each call "
            "copies it first",
            "call `.contiguous()` once on the operand, where it is made",
            _CUBLAS,
        )


def low_precision_accumulation(evidence: Evidence) -> Iterator[Finding]:
    """GEMMs that may sum up in less than FP32, by torch's switches."""
    rows = [row for row in _audited(evidence) if row["m"] is not None]
    if not rows or not evidence.run.device.startswith("cuda"):
        return
    flags = evidence.run.flags
    dtypes = {operand_dtype(row) for row in rows}
    found = [
        (f"torch.backends.{name} = False", cause)
        for name, (dtype, cause) in _ACCUMULATION.items()
        if dtype in dtypes and _is_on(flags.get(name))
    ]
    fast = flags.get("float8_use_fast_accum")
    gemms = [gemm for gemm, count in fast.items() if count] if isinstance(fast, dict) else []
    if gemms:
        names = ", ".join(f"Float8GemmConfig(use_fast_accum=False) for {gemm}" for gemm in gemms)
        found.append((names, "FP8 products are summed in fewer bits than FP32 has"))
    for cure, cause in found:
        yield _finding(
            evidence,
            "low-precision-accumulation",
            "info",
            rows,
            _count(rows),
            cause,
            f"for sums in FP32 set {cure}, at some cost in speed",
            "PyTorch, Numerical accuracy; DeepSeek-V3 (2024), section 3.3.2",
        )


def _audited(evidence: Evidence) -> list[dict[str, Any]]:
    """Returns the operations of the last step that was audited, in order."""
    rows: list[dict[str, Any]] = evidence.run.operations().to_pylist()
    last = max(((row["attempt"], row["step"]) for row in rows), default=None)
    found = [row for row in rows if (row["attempt"], row["step"]) == last]
    return sorted(found, key=lambda row: int(row["order"]))


def _finding(
    evidence: Evidence,
    rule: str,
    severity: str,
    rows: list[dict[str, Any]],
    figures: tuple[Figure, ...],
    cause: str,
    cure: str,
    source: str,
) -> Finding:
    modules = list(dict.fromkeys(row["module"] for row in rows))
    return Finding(
        rule=rule,
        severity=severity,
        step=rows[0]["step"],
        slot=modules[0] or None,
        evidence=figures,
        cause=cause,
        cure=cure,
        source=source,
        order=_order(evidence, modules[0]),
        others=tuple(module for module in modules[1:] if module)[:MAX_OTHERS],
    )


def _order(evidence: Evidence, module: str) -> float | None:
    """Returns where a module's first slot stands; None where it has none."""
    orders = [
        info.order
        for info in evidence.slots.values()
        if info.order is not None and module and info.module == module
    ]
    return float(min(orders)) if orders else None


def _count(rows: list[dict[str, Any]]) -> tuple[Figure, ...]:
    return (Figure("operations", sum(row["count"] for row in rows), rows[0]["step"]),)


def _sensitive(row: dict[str, Any]) -> str | None:
    """Returns what is sensitive about an operation, None where it is not or does not run low."""
    if row["phase"] != "forward" or row["output"] not in _LOW:
        return None
    # Of products only squares are measured.
    square = _name(row) == "mul" and row["amax"] is not None
    return "powers" if square else _SENSITIVE.get(_name(row))


def _name(row: dict[str, Any]) -> str:
    _, _, rest = str(row["operation"]).partition(".")
    return rest.partition(".")[0]


def _said(row: dict[str, Any]) -> str:
    where = f" in {row['module']}" if row["module"] else ""
    return f"{_name(row).strip('_')}{where}"


def _formats(dtypes: Iterable[str]) -> str:
    return " and ".join(sorted({_upper(_FORMATS[dtype]) for dtype in dtypes}))


def _upper(name: str) -> str:
    return name.upper().replace("BLOCK", "block")


def _runs_in(gemm: Gemm, *, tf32: bool) -> str | None:
    """Returns what of `MULTIPLES` a product runs in; None where no multiple matters."""
    if gemm.dtype.startswith("float8"):
        return "fp8"
    if gemm.dtype == "float32" and not tf32:
        return None
    return _FORMATS.get(gemm.dtype)


def _padding_text(gemm: Gemm, fmt: str) -> str:
    words = {"m": "rows (tokens)", "n": "out features", "k": "in features"}
    pads = [f"{words[d]} from {old} to {new}" for d, (old, new) in gemm.padding(fmt).items()]
    wider = [f"{words[d]} {new}" for d, (_, new) in gemm.padding("fp8").items()]
    more = f"; FP8 would want {', '.join(wider)}" if fmt != "fp8" and wider else ""
    return f"pad {', '.join(pads)}{more}"


def _is_on(flag: Any) -> bool:
    """Whether a switch is on; newer torch pairs it with one for split-K."""
    return bool(flag[0]) if isinstance(flag, (list, tuple)) and flag else flag is True


RULES = (
    sensitive_operation_low,
    misaligned_gemm,
    non_contiguous_gemm,
    low_precision_accumulation,
)
