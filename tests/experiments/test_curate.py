"""The program that curates a file: what it keeps, turns around and refuses; what it writes is training data."""

import json

import numpy as np
import pytest

from experiments import curate, inference
from rmjax.data.sources import open_source
from rmjax.errors import InputError


@pytest.fixture(scope='module', name='scorer')
def _scorer(reward_model):
  return inference.load(str(reward_model), rows=4, length=128)


@pytest.fixture(scope='module', name='pool')
def _pool(tmp_path_factory, scorer):
  """Rows 0 to 29 with labels that the model has right at the even ones; then a double, and one of the evaluation's prompts."""
  path = tmp_path_factory.mktemp('pool') / 'pool.jsonl'
  rng = np.random.default_rng(0)
  rows = [dict(prompt=f'w{k} ', chosen=f'w{k + 1} w{rng.integers(60)}', rejected=f'w{k + 2} w{rng.integers(60)}', id=k, score_chosen=1.0) for k in range(30)]
  path.write_text('\n'.join(map(json.dumps, rows)))
  for k, scored in enumerate(scorer.score((open_source(str(path))[i] for i in range(30)), scorer.encode)):
    if (scored.logits[0, 1] > 0) != (k % 2 == 0):
      rows[k]['chosen'], rows[k]['rejected'] = rows[k]['rejected'], rows[k]['chosen']
  rows += [dict(rows[4], prompt='W4'), dict(prompt='w50', chosen='w1', rejected='w2', id=31, score_chosen=1.0)]
  path.write_text('\n'.join(map(json.dumps, rows)))
  return path


def test_what_is_kept_turned_around_and_counted(pool, scorer, tmp_path):
  target = tmp_path / 'out' / 'kept.jsonl'
  report = curate.curate(pool, scorer, scorer, target, prompts=['w50'], recycle=0.5)
  assert [report[name] for name in ('read', 'kept', 'recycled', 'duplicate', 'contaminated', 'disagreement')] == [32, 15, 15, 1, 1, 0]
  before, after = ([json.loads(line) for line in path.read_text().splitlines()] for path in (pool, target))
  for row in after:
    old = before[row['id']]
    assert row['provenance']['pool'] == f'pool.jsonl:{row["id"] + 1}' and row['provenance']['p_best'] == row['provenance']['p_gold']
    if row['id'] % 2:
      assert (row['chosen'], row['rejected'], row['provenance']['origin']) == (old['rejected'], old['chosen'], 'recycled')
      assert row['provenance']['p_best'] < 0.5 and 'score_chosen' not in row  # what was said of the old label
    else:
      assert {name: value for name, value in row.items() if name != 'provenance'} == old and row['provenance']['p_best'] > 0.5
  assert json.loads((tmp_path / 'out' / 'kept.jsonl.report.json').read_text()) == report and report['margin_kept_50'] > 0
  trained = open_source(str(target))
  assert len(trained) == 30
  scored = scorer.score((trained[i] for i in range(30)), scorer.encode)
  assert all(record.logits[0, 1] > 0 for record in scored)  # now the model agrees with all of it


def test_annotators_may_save_what_the_best_model_rejects(pool, scorer, tmp_path):
  against = scorer._replace(score=lambda records, encode: (_negated(scored) for scored in scorer.score(records, encode)))
  rows = [json.loads(line) for line in pool.read_text().splitlines()[:8]]
  votes = {0: [[1, 1, 0], [1, 1]], 2: [[0, 0, 1]], 4: None, 1: [[1, 1, 1]]}  # 0 is saved; 2 and 4 are not; of 1 the gold model says no
  path = tmp_path / 'voted.jsonl'
  path.write_text('\n'.join(json.dumps({**row, 'verdicts': votes.get(row['id'])}) for row in rows))
  report = curate.curate(path, against, scorer, tmp_path / 'kept.jsonl', votes='verdicts')
  (kept,) = map(json.loads, (tmp_path / 'kept.jsonl').read_text().splitlines())
  assert kept['id'] == 0 and kept['provenance']['vote'] == 1 and report['disagreement'] == 7


def _negated(scored):
  return type(scored)(**{**vars(scored), 'logits': -scored.logits})


def test_rows_of_other_formats_are_turned_around_in_our_columns(scorer, tmp_path):
  path = tmp_path / 'pool.jsonl'
  rows = [dict(prompt='w1', responses=['w2 w3', 'w4 w5'], ratings=ratings) for ratings in ([1, 2], [2, 1], [1, 1])]
  rows[1]['prompt'] = rows[2]['prompt'] = 'w9'
  rows[2]['responses'] = ['w7', 'w8']
  path.write_text('\n'.join(map(json.dumps, rows)))
  report = curate.curate(path, scorer, scorer, tmp_path / 'kept.jsonl', recycle=0.5)
  assert report['kept'] + report['recycled'] == 2 and report['tie'] == 1
  source = open_source(str(tmp_path / 'kept.jsonl'))
  records = [source[i] for i in range(len(source))]
  assert all(scored.logits[0, 1] * (scored.wins[0, 1] - 0.5) > 0 for scored in scorer.score(records, scorer.encode))


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ('', 'is empty'),
    ('{"prompt": "w1", "responses": ["w1", "w2", "w3"], "ranks": [1, 2, 3]}', 'pool.jsonl:1: curation is of pairs.*3 responses'),
    ('{"prompt": "w1", "chosen": "w1"}', "pool.jsonl:1: column 'rejected': missing"),
    ('{"prompt": "w1", "chosen": "w1", "rejected": "w2", "provenance": 1}', "pool.jsonl:1: column 'provenance': already there"),
    ('{"prompt": "w1", "chosen": "w1", "rejected": "w2", "v": [[1], [2]]}', "pool.jsonl:1: column 'v': a list for each annotator"),
    ('{"prompt": "w1", "chosen": "w1", "rejected": "w2", "v": 3}', "pool.jsonl:1: column 'v': a list for each annotator"),
    ('{"prompt": "W50", "chosen": "w1", "rejected": "w2"}', 'nothing of 1 rows is left: 1 contaminated'),
  ],
)
def test_bad_input_is_one_clear_line(scorer, tmp_path, rows, message):
  path = tmp_path / 'pool.jsonl'
  path.write_text(rows)
  with pytest.raises(InputError, match=message):
    curate.curate(path, scorer, scorer, tmp_path / 'kept.jsonl', prompts=['w50'], votes='v')
  assert not list(tmp_path.glob('kept*'))


def test_a_model_does_not_filter_what_it_was_trained_on(tmp_path):
  pool = tmp_path / 'pool.jsonl'
  (tmp_path / 'config.json').write_text(json.dumps(dict(data=dict(train=f'other.jsonl, {tmp_path}/../{tmp_path.name}/pool.jsonl'))))
  with pytest.raises(InputError, match='it would confirm what it was told'):
    curate.check_unseen(tmp_path, pool)
  curate.check_unseen(tmp_path, tmp_path / 'another.jsonl')
