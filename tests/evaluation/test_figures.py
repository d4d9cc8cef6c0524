"""Figures: every one is drawn from data that has it, none from data that has not."""

import json

from matplotlib import image
import numpy as np
import pytest

from rmjax.data.records import wins_from_ratings
from rmjax.errors import InputError
from rmjax.evaluation import figures
from rmjax.evaluation.scored import Scored


def _scored(index, subset, n=3):
  rng = np.random.default_rng(index)
  rewards = rng.normal(size=n)
  return Scored(index, rewards, rewards[:, None] - rewards, rng.integers(1, 90, n), wins_from_ratings(rng.permutation(n)), group=index, subset=subset)


def _has_ink(path):
  picture = image.imread(path)[..., :3]
  return min(picture.shape[:2]) > 200 and 0.01 < np.mean(picture.min(-1) < 0.9) < 0.9


def test_every_figure_is_drawn(tmp_path):
  paths = figures.report([_scored(k, 'ab'[k % 2]) for k in range(40)], tmp_path / 'new', title='data')
  assert [path.name for path in paths] == ['reliability.png', 'rewards.png', 'length.png', 'subsets.png']
  assert all(map(_has_ink, paths))


def test_what_the_data_cannot_show_is_not_drawn(tmp_path):
  unlabelled = Scored(0, np.zeros(1), np.zeros((1, 1)), np.array([4]), np.zeros((1, 1)))
  assert figures.report([unlabelled], tmp_path) == []
  assert [path.stem for path in figures.report([_scored(k, '') for k in range(5)], tmp_path)] == ['reliability', 'rewards', 'length']


def test_training_curves_skip_what_was_not_finite(tmp_path):
  lines = [{'step': k, 'loss': None if k == 3 else 1 / k, 'accuracy': 0.6} for k in range(1, 9)] + [{'step': 8, 'eval_loss': 0.4}]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert _has_ink(figures.training_curves(tmp_path / 'metrics.jsonl', tmp_path / 'figures' / 'training.png'))
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  with pytest.raises(InputError, match='no line with `loss`'):
    figures.training_curves(tmp_path / 'metrics.jsonl', tmp_path / 'none.png')
