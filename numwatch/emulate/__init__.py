"""Training under a plan without its hardware: every operand rounded through its format."""
