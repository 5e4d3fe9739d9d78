"""Rules about NaN and infinities: in which phase of a step they came up first, and by what."""

from collections.abc import Iterator

from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.failing import Failure, failed, mentioned, nonfinite_steps
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.skips import descents
from numwatch.diagnose.thresholds import CONFIRMATIONS

MAX_OTHERS = 20
_IEEE = "IEEE 754: NaN and infinities spread through every operation after them"
_WORDS = {"nan": "NaN", "inf": "inf", "": "values that are not finite"}
_CURES = {
    **dict.fromkeys(
        ("div", "true_divide", "reciprocal", "rsqrt", "linalg_vector_norm", "norm"),
        "add an eps to the denominator, `x / (y + eps)`, or use the library's own norm with its "
        "`eps` argument",
    ),
    **dict.fromkeys(
        ("_softmax", "softmax", "_log_softmax", "log_softmax"),
        "leave at least one entry of each row unmasked, or zero such rows with "
        "`torch.nan_to_num(probabilities)`",
    ),
    **dict.fromkeys(
        ("log", "log1p", "log2", "log10", "logit"),
        "use a loss that takes logits (`F.binary_cross_entropy_with_logits`, `F.cross_entropy`), "
        "or `x.clamp(min=eps)` before the logarithm",
    ),
    **dict.fromkeys(
        ("sqrt", "pow"), "add an eps below the root, `torch.sqrt(x + eps)`, or clamp it from below"
    ),
    **dict.fromkeys(
        ("std", "var", "std_mean", "var_mean"),
        "the deviation of a single element is 0/0: `correction=0`, or leave such batches out",
    ),
    **dict.fromkeys(
        ("nll_loss_forward", "nll_loss2d_forward"),
        "leave out batches in which every target is `ignore_index`: the mean over none is 0/0",
    ),
    "exp": "subtract the maximum before `exp`, or use `torch.softmax`/`torch.logsumexp`, which do",
}


def nan_in_data(evidence: Evidence) -> Iterator[Finding]:
    """A batch is not finite before anything was computed."""
    found = failed(evidence, "data")
    if not found:
        return
    first = found[0]
    seen = f"{first.tensor} holds" if first.tensor else f"what {first.slot} takes already holds"
    sure = "" if first.tensor else ", so the batch does, or something before it is not watched"
    yield _finding(
        evidence,
        "nan-in-data",
        found,
        f"{seen} {_WORDS[first.value]} before anything is computed{sure}",
        "drop or mend such samples in the `Dataset`, for instance with "
        "`torch.isfinite(x).all()` in `__getitem__`, and look for a division by a deviation of 0",
    )


def nan_in_parameter(evidence: Evidence) -> Iterator[Finding]:
    """A parameter is not finite before the step's forward."""
    found = failed(evidence, "parameter")
    if not found:
        return
    first = found[0]
    initial = first.step == int(evidence.steps.step[0])
    since = "from the first step on" if initial else f"when step {first.step} begins"
    yield _finding(
        evidence,
        "nan-in-parameter",
        found,
        f"{first.slot} holds {_WORDS[first.value]} {since}, so the update before it, the "
        "initialisation or a checkpoint has put it there",
        "look at its initialisation or checkpoint; against updates that are not finite "
        '`Trainer(gradient_clip_val=1.0)` and FP32 weights, `precision="bf16-mixed"`',
    )


def nan_in_forward(evidence: Evidence) -> Iterator[Finding]:
    """An operation of the forward makes NaN of finite inputs."""
    found = [each for each in failed(evidence, "forward") if not each.overflow]
    if not found:
        return
    first = found[0]
    yield _finding(
        evidence,
        "nan-in-forward",
        found,
        f"{told(first)} in the forward, of inputs that were finite but for intended masks"
        if first.operation
        else f"{first.slot} is the first tensor of the forward with {_WORDS[first.value]}",
        cure_of(
            first,
            "look at what this module computes: a division by 0, a root or logarithm "
            "of negative numbers, a row masked whole; `Trainer(detect_anomaly=True)` names a line",
        ),
    )


def nan_in_loss(evidence: Evidence) -> Iterator[Finding]:
    """The model's outputs are finite and the loss is not."""
    found = failed(evidence, "loss")
    if not found:
        return
    first = found[0]
    if first.operation:
        cause = f"{told(first)} in the loss, of finite outputs"
    elif first.note:
        cause = f"the loss is {_WORDS[first.value]} from step {first.step} on ({first.note})"
    else:
        cause = f"the loss is {_WORDS[first.value]}, while all that was watched of the forward is "
        cause += "finite"
    yield _finding(
        evidence,
        "nan-in-loss",
        found,
        cause,
        cure_of(
            first,
            _cure_of_loss(first),
        ),
    )


def _cure_of_loss(first: Failure) -> str:
    if first.operation:
        return (
            "look at what this operation takes: nothing or a single element, a sum of 0, "
            "numbers that are negative or very large"
        )
    closer = "`NumericsMonitor(amax_every_n_steps=1)`"
    if first.note:
        return f"{closer} sees in the next run whether the forward or the loss makes it"
    return (
        "use a loss that takes logits, in FP32: `F.cross_entropy(logits.float(), targets)` or "
        f"`F.binary_cross_entropy_with_logits`; {closer} sees more"
    )


def nan_in_backward(evidence: Evidence) -> Iterator[Finding]:
    """Forward and loss are finite and a gradient is not, whatever the loss scale."""
    found = [each for each in failed(evidence, "backward") if _is_defect(evidence, each)]
    if not found:
        return
    first = found[0]
    what = f"{first.slot or 'a gradient'} is the first gradient with {_WORDS[first.value]}"
    seen = bool(evidence.steps.loss_known[evidence.steps.step == first.step].any())
    rest = "forward and loss are finite"
    if not seen:
        rest = "what was watched of the forward is finite and the loss was not seen"
    yield _finding(
        evidence,
        "nan-in-backward",
        found,
        f"{told(first)} in backward, while forward and loss are finite"
        if first.operation
        else f"{what}, while {rest}",
        "add an eps where the function is steep, `torch.sqrt(x + eps)`, `torch.log(x + eps)`, "
        "`x / (y + eps)`"
        if first.at_a_pole or first.name == "div"  # as the slopes of sqrt and log are computed
        else cure_of(
            first,
            "look for the slope of a function at its edge (sqrt or norm at 0, a power "
            "below 1, `torch.where` over a branch that is not finite); "
            "`Trainer(detect_anomaly=True)` names the line",
        ),
    )


def _is_defect(evidence: Evidence, failure: Failure) -> bool:
    """Whether a gradient is not finite for another reason than a loss scale that is too high."""
    at = evidence.steps.step == failure.step
    scaled = bool((evidence.steps.scale_before[at] != 1.0).any()) or bool(
        evidence.steps.found_inf[at].any()
    )
    if not scaled or failure.at_a_pole:
        return True
    return any(
        not each.by_overflow
        and each.failure is not None
        and each.failure.phase == "backward"
        and each.first <= failure.step <= each.last
        for each in evidence.once(descents)
    )


def told(failure: Failure) -> str:
    """Returns the operation, its source line, its result and the range of what it took."""
    where = f" at {failure.source}" if failure.source else ""
    module = f" in {failure.slot}" if failure.slot else ""
    return f"`{failure.name}`{module}{where} makes {_WORDS[failure.value]}"


def cure_of(failure: Failure, otherwise: str) -> str:
    """Returns the cure for what an operation did."""
    return _CURES.get(failure.name, otherwise)


def ranges(failure: Failure) -> tuple[Figure, ...]:
    """Returns the finite range of each tensor that the operation took."""
    figures = []
    for i, taken in enumerate(failure.inputs[:3]):
        for end in ("low", "high"):
            value = taken.get(end)
            if isinstance(value, (int, float)):
                name = f"{end} of input {i} ({taken.get('dtype', '')})"
                figures.append(Figure(name, float(value), failure.step))
    return tuple(figures)


def _finding(evidence: Evidence, rule: str, found: list[Failure], cause: str, cure: str) -> Finding:
    first = found[0]
    figures = []
    if first.count:
        figures.append(Figure("elements not finite", float(first.count), first.step))
    figures += ranges(first)
    figures.append(steps_failed(evidence, found))
    return Finding(
        rule=rule,
        severity=severity_of(evidence, found),
        step=first.step,
        slot=first.slot,
        evidence=tuple(figures),
        cause=cause
        + (f" ({first.note})" if first.note and first.note not in cause else "")
        + _where(evidence, first),
        cure=cure,
        source=_IEEE,
        order=first.order,
        others=tuple(slot for slot in mentioned(found) if slot != first.slot)[:MAX_OTHERS],
    )


def _where(evidence: Evidence, first: Failure) -> str:
    """Tells of several ranks the one that a value came up on."""
    rank, count = evidence.nonfinite_ranks.get((first.step, first.slot or ""), (None, 0))
    # Replicas are in the rows of the first rank alone.
    if rank is None or (first.phase == "parameter" and (rank, count) == (0, 1)):
        return ""
    return f", on rank {rank}" + (f" and {count - 1} more" if count > 1 else " alone")


def steps_failed(evidence: Evidence, found: list[Failure]) -> Figure:
    """Returns how many steps were not finite, gradients under a loss scale apart."""
    return Figure(
        "steps that were not finite", float(max(len(found), evidence.once(nonfinite_steps)))
    )


def severity_of(evidence: Evidence, found: list[Failure]) -> str:
    """Critical where weights took it up, or where it comes again and again; else a warning."""
    skipped = set(evidence.steps.step[evidence.steps.skipped].tolist())
    survived = all(each.step in skipped for each in found)
    times = max(len(found), evidence.once(nonfinite_steps))
    return "warning" if survived and times < CONFIRMATIONS else "critical"


RULES = (nan_in_data, nan_in_parameter, nan_in_forward, nan_in_loss, nan_in_backward)
