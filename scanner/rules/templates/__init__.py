"""Chat templates of adapters: parsed, read for hidden branches, rendered within a budget, compared with the base's.

These modules import Jinja, which few adapters need: `scanner.rules.template` is what others import.
"""
