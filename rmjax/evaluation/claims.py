"""Claims: inequalities between figures of arms, tested over seeds.

A claim is (left, relation, right, what the paper reports). Both sides are arithmetic over `arm.figure`, such as 'gpm.accuracy - 0.9' or
'abs(fimi.length_spearman)'; the arms share their seeds, so the two sides are compared seed by seed.
"""

import ast
from collections.abc import Mapping, Sequence
import operator
from typing import NamedTuple

import numpy as np
from scipy import stats

from rmjax.errors import InputError

Figures = Mapping[str, Sequence[Mapping[str, float]]]  # arm -> figures of each seed

LEVEL = 0.05  # of every test, one-sided
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class Verdict(NamedTuple):
  """What came of a claim.

  Attributes:
    claim: as text.
    paper: what the paper reports.
    holds: whether it does, see `check_claim`.
    left: mean of the left side over seeds.
    right: mean of the right side.
    difference: mean of left - right.
    error: standard error of that mean, over seeds.
    p_value: one-sided, of the null that the relation's test is against.
    seeds: their number.
  """

  claim: str
  paper: str
  holds: bool
  left: float
  right: float
  difference: float
  error: float
  p_value: float
  seeds: int


def check_claim(claim: Sequence, figures: Figures) -> Verdict:
  """Tests one claim by a paired t-test over seeds.

  '>' and '<' hold where the difference is SHOWN: the one-sided null of no difference is rejected at level 0.05. '>=' and '<=' ("no worse
  than") hold unless they are REFUTED: the opposite is not shown at that level; a margin belongs in the expression, and a wide error
  makes them easy, so read the error too.

  Args:
    claim: (left, relation, right, paper).
    figures: arm -> figures of each seed.

  Raises:
    InputError: an expression that cannot be read, a figure that an arm does not have, or a single seed.
  """
  left, relation, right, paper = claim
  if relation not in ('>', '>=', '<', '<='):
    raise InputError(f"claims: relation '{relation}': choose >, >=, < or <=")
  text = f'{left} {relation} {right}'
  if _seeds(figures) < 2:
    raise InputError(f'claims: {text}: {_seeds(figures)} seed has no standard error: run at least 2')
  sides = np.array([np.broadcast_to(evaluate(side, figures), _seeds(figures)) for side in (left, right)], float)
  differences = sides[0] - sides[1]
  if np.isnan(differences).any():
    raise InputError(f'claims: {text}: not every seed gives a number')
  sign = 1.0 if relation[0] == '>' else -1.0
  p = _one_sided(sign * differences)
  holds = p < LEVEL if len(relation) == 1 else 1 - p >= LEVEL
  count = len(differences)
  error = float(differences.std(ddof=1) / np.sqrt(count))
  shown = p if len(relation) == 1 else 1 - p
  return Verdict(text, paper, bool(holds), *(float(side.mean()) for side in sides), float(differences.mean()), error, float(shown), count)


def _one_sided(values: np.ndarray) -> float:
  """p-value of the null that the mean is at most 0."""
  spread, mean = values.std(ddof=1), values.mean()
  if spread <= 1e-12 * max(abs(mean), 1):
    return 0.0 if mean > 0 else 1.0 if mean < 0 else 0.5
  return float(stats.t.sf(mean / (spread / np.sqrt(len(values))), len(values) - 1))


def evaluate(expression: str | float, figures: Figures) -> np.ndarray | float:
  """Value of an expression for each seed; of a number, itself.

  Raises:
    InputError: it cannot be read, or an arm lacks the figure.
  """
  try:
    return _value(ast.parse(str(expression), mode='eval').body, figures)
  except SyntaxError as e:
    raise InputError(f"claims: '{expression}' cannot be read: write numbers and arm.figure with + - * / and abs()") from e


def _value(node: ast.AST, figures: Figures) -> np.ndarray | float:
  match node:
    case ast.Constant(value=int() | float() as number):
      return float(number)
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      return -_value(operand, figures)
    case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
      return _OPERATIONS[type(op)](_value(left, figures), _value(right, figures))
    case ast.Call(func=ast.Name(id='abs'), args=[argument]):
      return abs(_value(argument, figures))
    case ast.Attribute(value=ast.Name(id=arm), attr=name):
      if arm not in figures:
        raise InputError(f"claims: there is no arm '{arm}'; there are {', '.join(figures)}")
      if any(name not in seed for seed in figures[arm]):
        raise InputError(f"claims: arm '{arm}' has no figure '{name}'; it has {', '.join(sorted(figures[arm][0]))}")
      return np.array([seed[name] for seed in figures[arm]], float)
  raise SyntaxError


def named_arms(claim: Sequence) -> set[str]:
  """Arms that a claim speaks of."""
  nodes = (node for side in (claim[0], claim[2]) for node in ast.walk(ast.parse(str(side), mode='eval')))
  return {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}


def _seeds(figures: Figures) -> int:
  return len(next(iter(figures.values())))
