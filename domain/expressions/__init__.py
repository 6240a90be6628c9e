"""Evaluate expressions of the Common Expression Language (CEL), and templates: texts with `{{ expressions }}`.

An expression refers to `inputs`, `steps.<id>`, and in a mapped step to `item` and `index`: JSON values only. It always
ends: its only loops are `map`, `filter`, `all`, `exists` and `exists_one` over a list, never nested. The `check_…`
functions validate when a plan is saved or compiled; the others run with it.
"""

from domain.expressions.evaluator import WorkBudget, evaluate_condition, evaluate_expression
from domain.expressions.parser import BadExpression, ExpressionReferences
from domain.expressions.templates import check_expression, check_template, render_template

__all__ = [
    "BadExpression",
    "ExpressionReferences",
    "WorkBudget",
    "check_expression",
    "check_template",
    "evaluate_condition",
    "evaluate_expression",
    "render_template",
]
