"""A `Callback` both Lightning namespaces accept."""

import importlib.util

import pytorch_lightning

if importlib.util.find_spec("lightning") is None:
    Callback = pytorch_lightning.Callback
else:
    import lightning.pytorch

    class Callback(pytorch_lightning.Callback, lightning.pytorch.Callback):  # type: ignore[no-redef,misc]
        """Passes the `isinstance` checks of either namespace's Trainer and CLI."""
