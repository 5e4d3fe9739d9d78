"""`recommend`: a run's record to a plan."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from numwatch.errors import NumwatchError, near
from numwatch.plan import OPERAND_ROLES, TARGETS, ModulePlan, Plan, Training
from numwatch.recommend.amp import choose_amp
from numwatch.recommend.candidates import GEMM_TARGETS
from numwatch.recommend.choose import choose_module, fitting
from numwatch.recommend.history import History
from numwatch.recommend.keep import ends_to_keep, first_call, reasons_to_keep, sizes_of
from numwatch.recommend.masters import Masters, choose_masters
from numwatch.recommend.reading import read_histories
from numwatch.record import Run, open_run
from numwatch.record.ahead import read_ahead
from numwatch.record.totals import read_totals
from numwatch.snapshot import SlotInfo

Width = Literal["fp16", "bf16", "fp32"]


def recommend(
    run: Run | str | os.PathLike[str],
    target: str = "fp8",
    progress: Callable[[int], None] | None = None,
) -> Plan:
    """Returns what a run's model could train in, tensor by tensor, with the reasons.

    Args:
        run: The run, or where its record is.
        target: `amp` (FP16 or BF16, and the loss scale), `fp8`, `mxfp8`, `mxfp4`, `nvfp4`, or
            `int8-weights`.
        progress: Called with the number of rows read with each piece.

    Raises:
        NumwatchError: There is no such target, or the record holds nothing to judge by: no step,
            or no GEMM operand seen in full.
        RecordError: No record is there, or it can't be read.
    """
    if target not in TARGETS:
        raise NumwatchError(
            f"target is one of {', '.join(TARGETS)}; got {target!r}{near(target, TARGETS)}"
        )
    record = run if isinstance(run, Run) else open_run(run)
    steps = record.steps()
    if not steps.num_rows:
        raise NumwatchError(f"{record.path} holds no step: there is nothing to recommend by")
    source = {
        "run": str(record.path),
        "precision": record.precision,
        "steps": [int(steps["step"][0].as_py()), int(steps["step"][-1].as_py())],
    }
    if target == "amp":
        return Plan(target, _amp_training(record, progress), (), source)
    histories = read_histories(record, progress)
    modules = _modules(histories, record.slots)
    if not any(len(history.rows) for history in histories.values()):
        raise NumwatchError(
            f"{record.path} holds no GEMM operand seen in full: record some, with "
            "`NumericsMonitor(every_n_steps=...)` and inputs, weights and output gradients included"
        )
    return Plan(
        target, _training(record, target), _plans(modules, histories, record, target), source
    )


def _plans(
    modules: list[str], histories: Mapping[str, History], record: Run, target: str
) -> tuple[ModulePlan, ...]:
    offered = GEMM_TARGETS[target]
    kept = reasons_to_keep(record.slots, modules)
    if offered.keep_ends:
        kept = {**ends_to_keep(modules), **kept}
    plans = []
    for module in modules:
        sizes = sizes_of(record.slots, module)
        fit = fitting(offered, sizes)
        if module in kept:
            plans.append(ModulePlan(module, reason=kept[module]))
        elif fit is None:
            multiple = min(level.multiple for level in offered.levels)
            plans.append(
                ModulePlan(
                    module,
                    reason=f"{sizes[1]} features, {sizes[0]} outputs: no multiples of {multiple}",
                )
            )
        else:
            own = {
                role: histories[slot]
                for role in OPERAND_ROLES
                if (slot := f"{module}:{role}") in histories
            }
            plans.append(choose_module(module, own, fit))
    return tuple(plans)


def _modules(histories: Mapping[str, History], slots: Mapping[str, SlotInfo]) -> list[str]:
    """The modules that multiply an input with a weight, in the order of data flow."""
    names = dict.fromkeys(history.info.module for history in histories.values())
    products = [name for name in names if _multiplies(slots, name)]
    return sorted(products, key=lambda name: first_call(slots, name))


def _multiplies(slots: Mapping[str, SlotInfo], module: str) -> bool:
    """Whether a module may be a product: no embedding, norm or activation that is watched too."""
    weight = slots.get(f"{module}:weight")
    if weight is None or weight.module_class.startswith("Embedding"):
        return False
    return weight.shape is None or len(weight.shape) > 1


def _amp_training(record: Run, progress: Callable[[int], None] | None) -> Training:
    totals = read_totals(_told(record, progress))
    amp = choose_amp(totals, record.slots, _compute(record))
    masters = choose_masters(record.updates())
    reasons = {"compute": amp.reason}
    weights = _weights(masters, amp.compute, scaled=amp.loss_scale is not None, reasons=reasons)
    return Training(
        compute=cast("Width", amp.compute),
        weights=cast("Width", weights),
        loss_scale=amp.loss_scale,
        reasons=reasons,
    )


def _training(record: Run, target: str) -> Training:
    masters = choose_masters(record.updates())
    reasons: dict[str, str] = {}
    compute = _compute(record) if target == "int8-weights" else "bf16"
    weights = _weights(masters, compute, scaled=False, reasons=reasons)
    if target == "int8-weights":
        reasons["compute"] = "as the run's: only the weights are rounded"
    else:
        reasons["compute"] = "products are handed on in BF16, which needs no loss scale"
    return Training(cast("Width", compute), cast("Width", weights), reasons=reasons)


def _weights(
    masters: Masters | None, compute: str, *, scaled: bool, reasons: dict[str, str]
) -> str:
    """What weights are stored in: low ones go with the same compute format and no loss scale."""
    if masters is None:
        return "fp32"
    reasons["weights"] = masters.reason
    if masters.weights in ("fp32", compute) and not (scaled and masters.weights != "fp32"):
        return masters.weights
    reasons["weights"] += f"; FP32 ones go with {compute.upper()}"
    return "fp32"


def _compute(record: Run) -> str:
    formats = Counter(
        info.format
        for info in record.slots.values()
        if info.role in OPERAND_ROLES and info.format in ("fp16", "bf16", "fp32")
    )
    return formats.most_common(1)[0][0] if formats else "fp32"


def _told(record: Run, progress: Callable[[int], None] | None) -> Any:
    for table in read_ahead(record.tensor_batches()):
        yield table
        if progress is not None:
            progress(table.num_rows)
