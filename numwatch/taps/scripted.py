"""What is not seen of modules of `torch.jit`."""

from torch import nn

from numwatch.taps.hooks import takes_hooks
from numwatch.taps.selection import clean_path


def scripted(model: nn.Module) -> str | None:
    """Returns which modules show their weights alone, having no hooks; None without any."""
    paths: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") or not outer for outer in paths)
        if not takes_hooks(module) and not inside:
            paths.append(path)
    if not paths:
        return None
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    name = clean_path(paths[0]) or "the model"
    return f"activations and their gradients inside {name}{more}: torch.jit takes no hooks"
