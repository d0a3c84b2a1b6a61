"""Per-module weight features as columns of `module_features`; `docs/features.md` has the formulas."""

from __future__ import annotations

__all__ = ["LATER_MODULE_FEATURES", "MODULE_FEATURES"]

MODULE_FEATURES = (
    ("frobN", "‖BA‖_F / √(in·out), the paper's, without α/r."),
    ("delta_frob", "‖ΔW‖_F with the scale."),
    ("stable_rank", "‖ΔW‖_F² / σ₁²."),
    ("top1_energy", "σ₁² / Σσ²."),
)
LATER_MODULE_FEATURES = (
    ("row_top8_energy", "Share of ‖ΔW‖² in its eight largest rows; null for LoKr."),
    ("row_hoyer", "Hoyer's sparseness of the row norms of ΔW, 0 even, 1 a single row; null for LoKr."),
    ("col_top8_energy", "Share of ‖ΔW‖² in its eight largest columns; null for LoKr."),
    ("col_hoyer", "Hoyer's sparseness of the column norms of ΔW; null for LoKr."),
    ("energy_entropy", "−Σ e·ln e of energies e = σ²/Σσ², in nats."),
    ("energy_share", "Share of the module in the adapter's Σ ‖ΔW‖²."),
    ("entropy", "−Σ p·ln p of amplitudes p = σ/Σσ, in nats (the paper's later notebooks)."),
    ("entropy_norm", "The same divided by ln r (the paper's notebook 10); null for rank 1."),
    ("pr", "Participation ratio (Σσ)² / Σσ²."),
    ("asym", "log10(‖B‖ / ‖A‖) (the paper's later notebooks); null where one is zero."),
    ("asym_ln", "ln ‖B‖ − ln ‖A‖ (the paper's notebook 10)."),
    ("norm_A", "‖A‖_F."),
    ("norm_B", "‖B‖_F."),
    ("sv_max", "σ₁ of BA, without α/r."),
    ("sv_mean", "Mean singular value of BA."),
    ("sv_min", "Smallest of the r singular values of BA."),
    ("sv_max_over_mean", "σ₁ / mean(σ)."),
    ("sv_max_over_sum", "σ₁ / Σσ."),
    ("kurtosis", "Pearson's kurtosis of the entries of ΔW; only with --features full."),
    ("kurtosis_five", "κ of arXiv:2602.15195, with its epsilon, of BA; only with --features full."),
)
