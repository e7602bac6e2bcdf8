"""Evaluating the user's models: each distinct state once, in chunks, with costs counted."""

from fastguide.evaluation.calls import Limits
from fastguide.evaluation.cost import Cost
from fastguide.evaluation.evaluator import Evaluator
from fastguide.evaluation.models import Value
from fastguide.evaluation.resident import ResidentEvaluator
from fastguide.evaluation.rows import Rows, unique_conditions
from fastguide.evaluation.savings import resolve_savings, runs_ahead, stays_resident

__all__ = [
    "Cost",
    "Evaluator",
    "Limits",
    "ResidentEvaluator",
    "Rows",
    "Value",
    "resolve_savings",
    "runs_ahead",
    "stays_resident",
    "unique_conditions",
]
