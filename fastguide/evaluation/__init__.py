"""Evaluating the user's models: each distinct state once, in chunks, with costs counted."""

from fastguide.evaluation.calls import Limits
from fastguide.evaluation.cost import Cost
from fastguide.evaluation.evaluator import Evaluator, Value
from fastguide.evaluation.rows import Rows, unique_conditions
from fastguide.evaluation.savings import resolve_savings

__all__ = [
    "Cost",
    "Evaluator",
    "Limits",
    "Rows",
    "Value",
    "resolve_savings",
    "unique_conditions",
]
