"""Peaks, areas and proxy points on curves and surfaces whose maxima are known."""

import json
import re

from matplotlib import image
import numpy as np
import pytest

from rmjax.errors import InputError
from rmjax.evaluation.overoptimization import Curves, fit_proxy_point, overoptimization, read_curves
from rmjax.evaluation.overoptimization_figures import overoptimization_curves

STEPS = np.arange(0.0, 11.0)
HILL = Curves(STEPS, STEPS * (8 - STEPS), np.stack([STEPS / 10, 1 - STEPS / 5], 1), STEPS**2)


def test_the_peak_and_the_area_of_a_parabola():
  found = overoptimization(HILL, names=('a', 'b'))
  assert found == pytest.approx(
    dict(
      gold_first=0, gold_last=-20, gold_peak=16, gold_drop=36, peak_step=4, peak_kl=16, kl_last=100,
      gold_area=np.trapezoid(HILL.gold) / 10, peak_a=0.4, a_last=1.0, a_gain=1.0, peak_b=0.2, b_last=-1.0, b_gain=-2.0,
    )
  )  # fmt: skip
  # the area is a mean over steps: it does not depend on where evaluations lie
  coarse = Curves(*(values[[0, 1, 2, 5, 10]] for values in HILL._replace(gold=3 * STEPS)))
  assert overoptimization(coarse)['gold_area'] == pytest.approx(15.0)


def test_what_still_rises_has_no_drop():
  found = overoptimization(HILL._replace(gold=STEPS))
  assert found['gold_drop'] == 0 and found['peak_step'] == 10 and found['peak_0'] == 1.0
  one = overoptimization(Curves(np.ones(1), np.array([3.0]), np.ones((1, 1)), np.zeros(1)))
  assert one['gold_area'] == one['gold_peak'] == 3.0


def test_a_moving_average_takes_noise_off_the_peak():
  spike = HILL.gold.copy()
  spike[8] += 40
  assert overoptimization(HILL._replace(gold=spike))['peak_step'] == 8
  smooth = overoptimization(HILL._replace(gold=spike), window=9)
  assert smooth['peak_step'] != 8 and smooth['gold_last'] == -20
  flat = overoptimization(HILL._replace(gold=np.full(11, 2.0)), window=5)  # the ends have a shorter window, not zeros
  assert flat['gold_peak'] == pytest.approx(2.0) and flat['gold_drop'] == pytest.approx(0.0)


def surface(points, top=(0.6, 0.3)):
  a, b = points[:, 0] - top[0], points[:, 1] - top[1]
  return 1 - a**2 - 2 * b**2 + 0.5 * a * b


@pytest.mark.parametrize('degree', [2, 10])
def test_the_proxy_point_of_a_known_surface(degree):
  rng = np.random.default_rng(0)
  points = rng.uniform(0, 1, (400, 2))
  found = fit_proxy_point(points, surface(points) + 0.02 * rng.normal(size=400), degree=degree)
  np.testing.assert_allclose(found.point, (0.6, 0.3), atol=0.06)
  assert found.gold == pytest.approx(1.0, abs=0.03) and found.error == pytest.approx(0.02, rel=0.25) and found.inside


def test_the_maximum_over_both_differs_from_those_over_each_where_proxies_are_correlated():
  """Runs on one proxy drag the other along, as far as they are correlated; the surface's own maximum is elsewhere."""
  rng = np.random.default_rng(1)
  along = rng.uniform(0, 1, 300)
  runs = [np.stack([along, 0.7 * along], 1), np.stack([0.7 * along, along], 1)]
  points = np.concatenate(runs) + 0.03 * rng.normal(size=(600, 2))
  gold = surface(points, top=(0.7, 0.6))
  joint = fit_proxy_point(points, gold, degree=4)
  alone = [fit_proxy_point(run[:, [k]], surface(run, top=(0.7, 0.6)), degree=4).point[0] for k, run in enumerate(runs)]
  np.testing.assert_allclose(joint.point, (0.7, 0.6), atol=0.06)
  assert abs(alone[1] - 0.6) > 0.05 or abs(alone[0] - 0.7) > 0.05


def test_the_maximum_stays_where_runs_have_been():
  """Gold rises beyond everything that was visited: the point is on the edge, and says so."""
  rng = np.random.default_rng(2)
  points = rng.normal(0.3, 0.08, (300, 2))
  found = fit_proxy_point(points, points.sum(1))
  assert np.all(found.point <= points.max(0)) and found.point.sum() > 0.6 and not found.inside
  again = fit_proxy_point(points, points.sum(1))
  np.testing.assert_array_equal(again.point, found.point)  # nothing is left to chance


def test_curves_are_read_from_a_run(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  line = lambda step, gold: {'step': step, 'eval_rewards/gold/mean': gold, 'eval_rewards/a/mean': 2 * gold, 'eval_objective/kl': 0.5 * step}
  rows = [{'step': 1, 'reward': 3.0}, line(5, 0.2), line(10, 0.4), {'step': 15, 'reward': 1.0}, line(10, 0.5)]  # a resumed run says step 10 twice
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  curves = read_curves(path, gold='gold', proxies=('a',))
  for found, expected in zip(curves, ([5, 10], [0.2, 0.5], [[0.4], [1.0]], [2.5, 5.0]), strict=True):
    np.testing.assert_array_equal(found, expected)
  with pytest.raises(InputError, match='has no line with all of eval_rewards/truth/mean'):
    read_curves(path, gold='truth', proxies=('a',))


def test_the_figure_is_drawn(tmp_path):
  other = HILL._replace(gold=STEPS)
  path = overoptimization_curves({'ppo': [HILL, HILL._replace(gold=HILL.gold + 2)], 'xi': [other]}, tmp_path / 'new' / 'o.png', names=('a', 'b'))
  picture = image.imread(path)[..., :3]
  assert 0.01 < np.mean(picture.min(-1) < 0.9) < 0.9
  short = Curves(*(values[:4] for values in HILL))
  for runs in ({}, {'ppo': []}, {'ppo': [HILL, short]}):
    with pytest.raises(InputError, match='over-optimization: '):
      overoptimization_curves(runs, tmp_path / 'none.png', names=('a', 'b'))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: overoptimization(HILL._replace(gold=HILL.gold[:5])), 'over-optimization: 11 increasing steps need as many finite values'),
    (lambda: overoptimization(HILL._replace(kl=np.full(11, np.nan))), 'over-optimization: 11 increasing steps'),
    (lambda: overoptimization(HILL._replace(steps=-STEPS)), 'over-optimization: 11 increasing steps'),
    (lambda: overoptimization(HILL, window=4), 'over-optimization: window = 4'),
    (lambda: fit_proxy_point(HILL.proxies[:, :1].repeat(2, 1), HILL.gold), 'proxy points: 11 points do not span 2 proxies'),
    (lambda: fit_proxy_point(np.ones((1, 2)), np.ones(1)), 'proxy points: 1 points do not span 2 proxies'),
    (lambda: fit_proxy_point(HILL.proxies, np.full(11, np.inf)), 'proxy points: (11, 2) points and (11,) gold rewards'),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError, match=re.escape(message)):
    call()
