"""M-RewardBench: are reward models that learned preferences in one language as good, and of the same mind, in the others?

  python -m experiments.reproduce --config=configs/m_rewardbench.py --workdir=DIR

World: eight languages, of whose texts a backbone reads between half and none; preferences are told in the first alone. Three kinds of reward model start
from that backbone and learn from the same comparisons: a classifier, an implicit one (DPO against the backbone), and a judge, who is asked a question that is
the same in all languages and answers with one of two words. The judge learns from the comparisons too, where the paper's are not trained: this network can be
asked nothing that it was not taught. All are measured on the same items in all languages, and on translations of which up to 30 % of the words are wrong.
Why a word lies near its translation is told in `rmjax.worlds.languages`; `apart` is the control without that: its texts mix no languages.

Of flips: two languages must flip on as many items as their accuracies differ by, and flip on more if what goes wrong in one has nothing to do with what goes
wrong in the other: then kappa is 0, see `experiments.languages_study.measure`. The claim is that they are nearer to the second than to the first. More flips
than under independence would be a kappa below 0; what makes errors of two languages alike is that items are hard in both.

The benchmark itself runs on its files by `python -m experiments.evaluate --benchmark=m_rewardbench`.

Reference: Gureja et al., M-RewardBench: Evaluating Reward Models in Multilingual Settings (2024).
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'm_rewardbench'
  config.runner = 'experiments.languages_study:study'
  config.world = dict(
    name='rmjax.worlds.languages:Languages',
    train_size=1000,
    eval_size=400,
    eval=dict(),
    topics=2,
    traits=2,
    responses=2,
    weights=((1.0, 1.0),),
    marks=3,
    blur=1.0,
    temperature=0.2,
    language=0,
    noise=0.0,
    shares=(24.0, 14.0, 8.0, 5.0, 3.0, 2.0, 1.0, 0.0),
    switch=0.3,
  )
  config.train.update(steps=150, rows=4, length=124, slots=5, responses=2)
  config.optimizer.update(learning_rate=1e-3)
  config.study = dict(
    noise=(0.0, 0.05, 0.15, 0.3),
    embedding=0.05,  # words begin near one another; at the decoder's own scale of 1 they would hardly move in so few steps
    pretrain=_pretrain(),
  )
  config.smoke = (('study.pretrain', _pretrain(steps=2)),)
  config.evaluation.measures = ()
  implicit = dict(name='rmjax.heads.implicit:ImplicitRewardHead', beta=0.1, average=False, reference='frozen')
  judge = dict(name='rmjax.heads.yes_no:YesNoHead', tokens=(' plus', ' minus'))  # words of the world's tokenizer, of no language
  config.arms = dict(
    classifier=(),
    implicit=(('model.head', implicit),),
    judge=(('model.head', judge), ('data.suffix', ' ?')),
    apart=(('world.switch', 0.0),),
  )
  kinds = ('classifier', 'implicit', 'judge')
  rates = {'classifier': ((0, 5), (5, 15), (15, 30)), 'implicit': ((0, 30),), 'judge': ((0, 30),)}
  noisier = [(kind, less, more) for kind in kinds for less, more in rates[kind]]
  config.claims = (
    *((f'{kind}.gap_p', '<', 0.05, 'all kinds of model are worse outside English') for kind in kinds),
    *((f'{kind}.spearman', '>', 0.7, 'languages with more resources score higher') for kind in kinds),
    ('classifier.gap', '<', 'apart.gap', 'ours, control: what transfers is what pretraining put together'),
    *((f'{kind}.accuracy_noise_{less}', '>', f'{kind}.accuracy_noise_{more}', 'better translations score 1 to 3 points more') for kind, less, more in noisier),
    *((f'{kind}.kappa_noise_{less}', '>', f'{kind}.kappa_noise_{more}', 'ours: and agree more with the original') for kind, less, more in noisier),
    *((f'{kind}.flip', '>', f'({kind}.flip_least + {kind}.flip_independent) / 2', 'preferences differ substantially between languages') for kind in kinds),
    *((f'{kind}.kappa', '>', 0.0, 'ours: but less than independent errors would') for kind in kinds),
    ('judge.gap', '<', 'classifier.gap', 'generative models lose least: about 3 points, classifiers about 8'),
    ('classifier.gap', '<', 'implicit.gap', 'and implicit ones most, up to about 13'),
  )
  return config


def _pretrain(steps: int = 350) -> tuple:
  """What the reading of texts differs in from the training of a reward model."""
  return (
    ('world.name', 'rmjax.worlds.languages:Texts'),
    ('world.train_size', 8000),
    ('world.marks', 6),
    ('model.head', dict(name='rmjax.heads.implicit:ImplicitRewardHead', beta=1.0, average=False, reference='none')),
    ('losses', dict(likelihood=dict(name='rmjax.losses.implicit:negative_log_likelihood', per='token', weight=1.0))),
    ('data.suffix', ''),
    ('train.steps', steps),
    ('train.rows', 8),
    ('optimizer.learning_rate', 3e-3),
  )
