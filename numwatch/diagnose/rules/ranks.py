"""Rules about several ranks that train together."""

from collections.abc import Iterator

from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.finding import Figure, Finding


def ranks_differ(evidence: Evidence) -> Iterator[Finding]:
    """Ranks skip different steps or scale by different factors, so their weights part."""
    found = evidence.events_of("differing")
    if not found:
        return
    first = found[0]
    names = [str(name) for name in first.get("scalars") or ()]
    yield Finding(
        rule="ranks-differ",
        severity="critical",
        step=int(first["step"]),
        slot=None,
        evidence=(Figure("steps in which ranks differ", float(len(found))),),
        cause=f"the ranks do not agree on {' and '.join(names)} from step {first['step']} on, so "
        "copies of the same weights are stepped differently",
        cure="let one scaler know of all ranks' gradients: call its `unscale_` and `step` after "
        "they are reduced; for shards use `torch.distributed.fsdp.sharded_grad_scaler."
        "ShardedGradScaler`",
        source="policy",
    )


RULES = (ranks_differ,)
