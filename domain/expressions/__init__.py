"""Expressions and templates of plans: the Common Expression Language (CEL), and text with `{{ expressions }}` in it.

An expression sees `inputs`, `steps.<id>`, and in a mapped step `item` and `index`: JSON values, and nothing else. It
always ends: its only loops are `map`, `filter`, `all`, `exists` and `exists_one` over a list, never one within another.
`expression` and `template` check at the door, `evaluate`, `truth` and `render` answer later.
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
