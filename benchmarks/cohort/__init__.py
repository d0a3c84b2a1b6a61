"""The demo hub: a tiny base model and a recipe-matched cohort of clean and poisoned LoRA adapters."""
