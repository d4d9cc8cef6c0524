"""EndoRM: what a language model of an expert's responses is worth as a reward model, untrained; and what is gained by optimizing it.

  python -m experiments.reproduce --config=configs/endorm.py --workdir=DIR

To score with it a language model of your own, a Hugging Face directory or a run:

  python -m experiments.score --checkpoint=HF_DIR --head=rmjax.rewards.endogenous:EndogenousHead,mode=sum --input=FILE --output=FILE

World: four tokens, responses of 2, 4 and 8 of them, a random reward of each token after the last two, an expert who is soft-optimal, everything exact;
see `experiments.endogenous`. With the paper's penalty (beta = 0.01) the optimum of the reward is, nearly, the most likely response, so that its control
is the fitted policy at a temperature of the same entropy: what is left between them is the difference of sharpening responses and sharpening tokens.
`gentle` has beta = 1, where both are far from one response alone.

Reference: Generalist Reward Models: Found Inside Large Language Models (2025), Theorems 1 and 2, and its comparison with trained reward models; it has
no such measurement.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.system = 'endorm'
  config.program = 'reproduce'
  config.runner = 'experiments.endogenous:study'
  config.study = dict(
    problems=4,  # a seed's figures are means over so many
    lengths=(2, 4, 8),
    expert=256,  # responses of the expert
    noise=0.0,  # share of its tokens that are uniform ones
    alpha=1.0,
    beta=0.01,  # of the KL penalty, the paper's
    prior=0.5,  # a count for each token in each state, so that what was not seen is not impossible
  )
  config.smoke = (('study.problems', 1), ('study.lengths', (2, 4)), ('study.expert', 16))

  config.seeds = (0, 1, 2, 3, 4)
  config.arms = dict(
    few=(('study.expert', 32),),
    medium=(),
    many=(('study.expert', 2048),),
    gentle=(('study.beta', 1.0),),
    noisy=(('study.noise', 0.2),),
  )
  arms = ('few', 'medium', 'many', 'noisy')
  config.claims = (
    *((f'{arm}.slope_rl', '<', f'{arm}.slope_sampling', 'Theorem 2: regret grows with H, not H^2') for arm in arms),
    ('medium.slope_rl', '<', 'medium.slope_sharpened', 'not reported: more than sharpening'),
    ('medium.regret_rl_8', '<', 'medium.regret_sharpened_8', 'not reported: more than sharpening'),
    ('gentle.regret_rl_8', '<', 'gentle.regret_sharpened_8', 'not reported: more than sharpening, at the same entropy'),
    ('gentle.regret_again_8', '>=', 'gentle.regret_rl_8', 'repeating the extraction gains nothing'),
    ('many.regret_sampling_8', '<', 'few.regret_sampling_8', 'theory: it falls with the error of the fit'),
    ('few.accuracy_endogenous_8', '>', 'few.accuracy_random_8', 'above chance with 32 responses'),
    *((f'{arm}.accuracy_endogenous_8', '>', f'{arm}.accuracy_bradley_terry_8', 'RM-Bench: above trained reward models') for arm in arms),
    ('medium.accuracy_uniform_endogenous_8', '>', 'medium.accuracy_uniform_bradley_terry_8', 'the same off the expert (ours)'),
    ('medium.accuracy_endogenous_8', '>', 'medium.accuracy_contrast_8', 'the same against expert-over-random pairs (ours)'),
    ('noisy.accuracy_endogenous_8', '<', 'medium.accuracy_endogenous_8', 'not reported: likelihood is not quality where the expert errs'),
  )
  return config
