"""Any dtype by torch operations: what machine code does not take, or where it cannot run."""
