"""RLBFF: every claim's figure is measured, by hand where it can be; and a user's own principle is what --suffix says."""

import json

from absl import flags
import numpy as np
import pytest

from configs import rlbff
from experiments import inference, principles_study, reproduce, score, train_reward
from experiments.setup import open_world
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation.claims import named_arms
from rmjax.worlds import principles

SMALL = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2, tie_embeddings=False)


def small(**changes):
  config = rlbff.get_config()
  config.model.decoder = SMALL
  return reproduce.arm_config(config, tuple(({'train.steps': 2, 'world.train_size': 80, 'study.records': 5} | changes).items()))


def test_every_claim_is_of_a_figure_and_every_arm_of_the_config():
  config = small()
  assert set().union(*map(named_arms, config.claims)) <= set(config.arms)
  figures = {}
  for name in ('rlbff', 'heads'):
    figures[name] = principles_study.study(reproduce.arm_config(config, config.arms[name]), (0,)) * 2
    assert len(figures[name]) == 2 and np.isfinite(list(figures[name][0].values())).all()
  for overrides in config.arms.values():
    open_world(reproduce.arm_config(config, overrides))
  for claim in config.claims:
    reproduce.check_claim(claim, {name: figures.get(name, figures['rlbff']) for name in config.arms})


def test_arms_have_as_many_annotations_and_consensus_keeps_few_that_are_clean():
  config = small()
  given = {name: principles_study._train_source(reproduce.arm_config(config, config.arms[name]))[1] for name in ('rlbff', 'unfiltered', 'bradley_terry')}
  given['fixed'] = principles_study._train_source(reproduce.arm_config(config, (*config.arms['fixed'], ('world.train_size', 160))))[1]
  assert given['bradley_terry'] == {'annotations': 480} and given['fixed']['annotations'] == 480
  assert given['rlbff']['annotations'] == given['unfiltered']['annotations'] and abs(given['rlbff']['annotations'] / 480 - 1) < 0.1
  assert given['unfiltered']['kept'] == 1 and given['rlbff']['kept'] < 0.2 and given['rlbff']['clean'] > 0.85 > given['unfiltered']['clean']


def exact():
  """Four responses with all levels of two attributes."""
  levels = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
  labels = {'trait_0': levels[:, 0], 'trait_1': levels[:, 1], 'gold': levels @ np.array([4, 1], np.float32)}
  record = Record('p', tuple('abcd'), np.zeros((4, 4), np.float32), np.full(4, np.nan, np.float32), where='0', labels=labels)
  return [record], 2 * levels.T[:, None] - 1  # rewards of +1 and -1


def test_figures_of_rewards_that_are_always_right():
  records, right = exact()
  figures = principles_study.measure(records, right, -right)
  assert figures['principle'] == 1 and figures['paraphrase'] == 0 and figures['correct'] == figures['auroc'] == 1
  assert figures['correct_other'] == 0.5
  assert figures['overall_told'] == 1 and figures['overall'] == pytest.approx((4 + 0.5 * 2) / 6)  # two of the six pairs have the same accuracy
  assert figures['overall_sum'] == pytest.approx((5 + 0.5) / 6)  # 4 against 1 is the only pair that the sum ties
  assert figures['overall_least'] == pytest.approx((3 + 0.5 * 3) / 6)  # one response has all: it beats three, which tie
  assert figures['ece'] == pytest.approx(1 - 1 / (1 + np.exp(-1)), abs=1e-6)


def test_heads_take_the_nearest_principle_by_words():
  found = principles_study.nearest(principles.UNSEEN)
  assert found == {text: j for j, some in enumerate(principles.UNSEEN) for text in some}


def test_a_user_scores_a_file_by_a_principle_of_his_choice(tmp_path):
  """Trained by the main program on rows of prompt, response with its question, and label; the question comes from the command line afterwards."""
  world = principles.Principles(split='train', size=40)
  rows = [
    dict(prompt=record.prompt, completion=response, label=int(rating))
    for record in (world[i] for i in range(40)) for response, rating in zip(record.responses, record.ratings, strict=True)
  ]  # fmt: skip
  (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
  config = rlbff.get_config('text')
  assert config.model.head.tokens == (' Yes', ' No') and config.data.suffix == ' Answer:' and not config.world.name
  config.model.head.tokens = (' plus', ' minus')
  config.model.decoder = SMALL
  config.train.update(steps=2, length=64, rows=8)
  config.data.update(train=str(tmp_path / 'train.jsonl'), eval=str(tmp_path / 'train.jsonl'), suffix=' ?', tokenizer=str(principles.Principles.tokenizer_path))
  config.data.max_length = 64
  result = train_reward.train(config, tmp_path / 'run')
  assert np.isfinite(result['loss'])

  plain = [dict(prompt='who asks : hat ?\n', response=text) for text in ('circle king father .', 'star snow .')]
  asked = [row | dict(response=row['response'] + ' is it table stone') for row in plain]
  found = {}
  for name, some, suffix in (('plain', plain, None), ('chosen', plain, ' is it table stone ?'), ('other', plain, ' is it sand salt ?'), ('asked', asked, None)):
    (tmp_path / 'in.jsonl').write_text('\n'.join(map(json.dumps, some)) + '\n')
    score.score_file(inference.load(str(tmp_path / 'run'), rows=2, length=64, suffix=suffix), tmp_path / 'in.jsonl', tmp_path / 'out.jsonl')
    found[name] = np.array([json.loads(line)['reward'] for line in (tmp_path / 'out.jsonl').read_text().splitlines()])
  np.testing.assert_allclose(found['chosen'], found['asked'], atol=1e-6)
  assert np.abs(found['chosen'] - found['other']).min() > 1e-3 < np.abs(found['chosen'] - found['plain']).min()
  with pytest.raises(InputError, match="--suffix=' is it readable .*the tokenizer does not know all of it"):
    inference.load(str(tmp_path / 'run'), suffix=' is it readable ?')
  with pytest.raises(InputError, match='is a function of text: it has no suffix'):
    inference.load('builtins:len', suffix=' ?')


def test_the_command_line_has_the_suffix():
  values = flags.FlagValues()
  original, flags.FLAGS = flags.FLAGS, values
  try:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(inference.flags, 'FLAGS', values)
      for name in ('string', 'bool', 'enum', 'integer'):
        define = getattr(flags, f'DEFINE_{name}')
        patch.setattr(inference.flags, f'DEFINE_{name}', lambda *args, define=define, **options: define(*args, flag_values=values, **options))
      inference.define_flags()
      values(['score', '--checkpoint=run', '--suffix= is it clear ?'])
      seen = {}
      patch.setattr(inference, 'load', lambda checkpoint, **options: seen.update(options, checkpoint=checkpoint))
      inference.load_from_flags(bad_rows='strict')
      assert seen['suffix'] == ' is it clear ?' and seen['checkpoint'] == 'run'
  finally:
    flags.FLAGS = original
