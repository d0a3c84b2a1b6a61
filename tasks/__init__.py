"""Library functions as Prefect tasks: one retry policy, small JSON receipts, a batch per task run."""
