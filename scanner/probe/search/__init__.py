"""The trigger search (DESIGN section 5): what no battery can know is looked for with the adapter's own gradients."""

from scanner.probe.search.plan import MIN_TEXTS, SearchPlan, plan_for, plans_id

__all__ = ["MIN_TEXTS", "SearchPlan", "plan_for", "plans_id"]
