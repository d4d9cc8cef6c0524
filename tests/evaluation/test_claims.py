"""Claims over seeds: what is shown, what is refuted, and expressions that cannot be read."""

import numpy as np
import pytest
from scipy import stats

from rmjax.errors import InputError
from rmjax.evaluation.claims import check_claim, evaluate, named_arms

ONE, TWO = [0.9, 0.92, 0.88, 0.91, 0.9], [0.85, 0.88, 0.84, 0.85, 0.86]
FIGURES = {'new': [dict(accuracy=x, rho=-x) for x in ONE], 'old': [dict(accuracy=x) for x in TWO]}


def test_a_paired_t_test_as_scipy_has_it():
  verdict = check_claim(('new.accuracy', '>', 'old.accuracy', 'ten points'), FIGURES)
  expected = stats.ttest_rel(ONE, TWO, alternative='greater')
  assert verdict.holds and verdict.p_value == pytest.approx(expected.pvalue)
  assert verdict.difference == pytest.approx(np.mean(np.subtract(ONE, TWO)))
  assert verdict.difference / verdict.error == pytest.approx(expected.statistic)
  assert not check_claim(('new.accuracy', '<', 'old.accuracy', ''), FIGURES).holds


def test_better_must_be_shown_and_no_worse_must_not_be_refuted():
  noise = {'a': [dict(x=x) for x in (0.5, 0.6, 0.4)], 'b': [dict(x=x) for x in (0.55, 0.5, 0.45)]}
  holds = lambda left, relation, right, figures=noise: check_claim((left, relation, right, ''), figures).holds
  assert not holds('a.x', '>', 'b.x') and not holds('a.x', '<', 'b.x') and holds('a.x', '>=', 'b.x') and holds('a.x', '<=', 'b.x')
  assert not holds('old.accuracy', '>=', 'new.accuracy', FIGURES) and holds('old.accuracy', '>=', 'new.accuracy - 0.05', FIGURES)
  same = {'a': [dict(x=1.0)] * 3, 'b': [dict(x=1.0)] * 3}
  assert not holds('a.x', '>', 'b.x', same) and holds('a.x', '>=', 'b.x', same) and holds('a.x', '>', 0.5, same)


def test_expressions():
  np.testing.assert_allclose(evaluate('abs(new.rho) * 2 - (old.accuracy + 1) / 2', FIGURES), 2 * np.array(ONE) - (np.array(TWO) + 1) / 2)
  assert evaluate(0.7, FIGURES) == 0.7 and evaluate('-1', FIGURES) == -1
  assert named_arms(('abs(new.rho) - 1', '>', 'old.accuracy', '')) == {'new', 'old'}


@pytest.mark.parametrize(
  ('claim', 'message'),
  [
    (('new.accuracy', '=', 1, ''), "relation '='"),
    (('new.accuracy >', '>', 1, ''), 'cannot be read'),
    (('__import__("os")', '>', 1, ''), 'cannot be read'),
    (('newer.accuracy', '>', 1, ''), "no arm 'newer'; there are new, old"),
    (('old.rho', '>', 1, ''), "arm 'old' has no figure 'rho'; it has accuracy"),
  ],
)
def test_what_cannot_be_tested_is_named(claim, message):
  with pytest.raises(InputError, match=message):
    check_claim(claim, FIGURES)


def test_one_seed_shows_nothing():
  with pytest.raises(InputError, match='run at least 2'):
    check_claim(('a.x', '>', 0, ''), {'a': [dict(x=1.0)]})
