"""Every target by its name."""

import tempfile
from pathlib import Path

from fuzz_base import Target
from fuzz_of_capsules import CapsuleFactsTarget, CapsuleStateTarget
from fuzz_of_commands import CommandsTarget, SpecsTarget
from fuzz_of_plans import ExportsTarget, PlanTarget
from fuzz_of_records import EventsTarget, ManifestTarget, PartsTarget

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        ManifestTarget,
        EventsTarget,
        PartsTarget,
        CapsuleFactsTarget,
        CapsuleStateTarget,
        PlanTarget,
        ExportsTarget,
        SpecsTarget,
        CommandsTarget,
    )
}


def made(name: str, directory: Path | None = None) -> Target:
    """Returns a target with a directory of its own."""
    return TARGETS[name](directory or Path(tempfile.mkdtemp(prefix="numwatch-fuzz-")))
