"""Where numbers are caught: modules, parameters, optimizers, the scaler."""
