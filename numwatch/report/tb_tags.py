"""How charts spell a slot: groups TensorBoard folds, and whether the loss scale is in the numbers.

TensorBoard groups by what stands before the first slash. No colons or brackets: other loggers
refuse them.
"""

from numwatch.snapshot import GRADIENT_ROLES, path_of, role_of

STEP_GROUP = "numwatch"
ROLE_GROUP = "numwatch_roles"
TENSOR_GROUP = "numwatch_tensors"
HISTOGRAM_GROUP = "numwatch_log2"
UPDATE_GROUP = "numwatch_updates"
PARAMETER_GROUP = "numwatch_parameters"
STATE_GROUP = "numwatch_states"
WINDOW_GROUP = "numwatch_window"
SHADOW_GROUP = "numwatch_shadow"


def module_of(slot: str) -> str:
    """Returns the module path of a slot, `root` for the model itself."""
    return path_of(slot) or "root"


def domain_of(slot: str) -> str:
    """Returns the role, ending in `_scaled` where the loss scale is still in the numbers."""
    role = role_of(slot)
    return f"{role}_scaled" if role in GRADIENT_ROLES else role


def role_group(slot: str) -> str:
    """Returns what the tags of all slots of this slot's role begin with."""
    return f"{ROLE_GROUP}/{domain_of(slot)}"


def unscaled_role_group(slot: str) -> str:
    """Returns the same for figures out of which the loss scale was divided."""
    return f"{ROLE_GROUP}/{role_of(slot)}_unscaled"


def tensor_group(slot: str) -> str:
    """Returns what the tags of this slot alone begin with."""
    return f"{TENSOR_GROUP}/{module_of(slot)}/{domain_of(slot)}"


def role_histogram(slot: str) -> str:
    """Returns the tag of the histogram over all slots of this slot's role."""
    return f"{HISTOGRAM_GROUP}/{domain_of(slot)}"


def tensor_histogram(slot: str) -> str:
    """Returns the tag of this slot's own histogram."""
    return f"{HISTOGRAM_GROUP}/{module_of(slot)}/{domain_of(slot)}"


def storage_group(storage: str) -> str:
    """Returns what the tags of all updates begin with, judged for a storage format."""
    return f"{UPDATE_GROUP}/{storage}"


def parameter_group(parameter: str) -> str:
    """Returns what the tags of this parameter's own updates begin with."""
    return f"{PARAMETER_GROUP}/{parameter}"


def shadow_group(slot: str) -> str:
    """Returns what the tags of this slot's role begin with, for what a shadow step measured."""
    return f"{SHADOW_GROUP}/{role_of(slot)}_unscaled"
