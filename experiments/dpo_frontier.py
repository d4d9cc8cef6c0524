"""Reward against KL of policies trained on one set of preferences: DPO and its kin, and policy optimization on a reward that was learned from it.

`study` is the `runner` of configs/dpo.py. In the world of sequences a small language model is pretrained, pairs of its responses are labelled by
Bradley-Terry on gold, and each method gets the same pairs, at several strengths side by side. Then every policy is sampled from:

  gold(pi) = E_pi[r*],  KL(pi || ref) = E_pi[sum over tokens of the divergence of next-token distributions], in nats a response

Prompts are few and drawn alike, and those measured on are those trained on: the study is of optimization, not of generalisation to prompts.

Dimensions: E seeds, K strengths, lanes = E K (seeds first), P pairs, X prompts, N responses, T length.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import ml_collections
import numpy as np

from configs import grpo, sft
from experiments import policy_claims
from rmjax import trees
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.data.prompts import encode_prompt
from rmjax.data.records import Record
from rmjax.data.tokenizer import Tokenizer
from rmjax.decoding.generate import generate, pack_prompts
from rmjax.errors import InputError
from rmjax.heads.implicit import ImplicitRewardHead
from rmjax.heads.scalar import ScalarHead
from rmjax.losses import implicit
from rmjax.losses.preference import preference_cross_entropy
from rmjax.models import RewardModel
from rmjax.training import optimizers
from rmjax.training.step import init_state, make_step
from rmjax.trees import Trees
from rmjax.worlds import sequences

METHODS = ('dpo', 'ipo', 'preferred_ft', 'learned', 'gold', 'optimum')
SHARPNESS = tuple(np.geomspace(0.02, 4.0, 40))  # 1 / beta of the exact optimum's frontier


class Ground(NamedTuple):
  """What all methods start from.

  Attributes:
    decoder: the network.
    policies: its pretrained parameters, stacked over seeds: the reference.
    prompts: token ids [X, L].
    lengths: of the prompts [X].
    pairs: two responses of the reference to a prompt in each row [E, P, T], with `wins` and `ref_log_probs`.
    best: gold of the exact optimum at each of the config's divergences [E, D].
    start: gold of the reference [E].
    gold: rollout -> r*, [R, S, N].
  """

  decoder: Decoder
  policies: Any
  prompts: np.ndarray
  lengths: np.ndarray
  pairs: Trees
  best: np.ndarray
  start: np.ndarray
  gold: Callable[[Trees], Array]


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Figures of the method that `config.frontier` describes, a dict for each seed; a seed decides policy, pairs and samples.

  Returns:
    `gain_<d>`, in units of r*: gold less the reference's at a divergence of d hundredths of a nat, between the policies of neighbouring strengths
    (the reference among them) by a straight line over sqrt(KL), which is how the first nats are spent best; the last one's beyond it.
    `share_<d>`: of what the exact optimum gains there. `best_gain`: of the strength with the highest gold. `gain_of_<k>`, `kl_of_<k>`: of each
    strength. `proxy_accuracy`, where a reward was learned: share of pairs that it and gold order alike.

  Raises:
    InputError: there is no such method.
  """
  settings = config.frontier
  if settings.method not in METHODS:
    raise InputError(f"frontier.method = '{settings.method}': choose one of {', '.join(METHODS)}")
  shared = {name: value for name, value in settings.to_dict().items() if name not in ('method', 'strengths', 'rate', 'steps', 'iterations')}
  ground, more = _ground(json.dumps(shared), tuple(seeds)), [{} for _ in seeds]
  divergences = np.array(settings.divergences)
  if settings.method == 'optimum':
    gains = ground.best - ground.start[:, None]
    return [dict(_at('gain', divergences, gain), best_gain=float(gain.max())) for gain in gains]
  if settings.method in ('learned', 'gold'):
    policies, more = _optimize(settings, ground, seeds)
  else:
    policies = _train(settings, ground, seeds)
  gold, kl = _measure(ground, policies, seeds, settings)
  figures = []
  for seed in range(len(seeds)):
    order = np.argsort(kl[seed])
    gain = np.interp(divergences**0.5, np.r_[0, kl[seed][order]] ** 0.5, np.r_[0, gold[seed][order] - ground.start[seed]])
    most = ground.best[seed] - ground.start[seed]
    share = np.divide(gain, most, out=np.zeros_like(gain), where=most > 0)
    found = _at('gain', divergences, gain) | _at('share', divergences, share)
    for k in range(len(settings.strengths)):
      found |= {f'gain_of_{k}': float(gold[seed, k] - ground.start[seed]), f'kl_of_{k}': float(kl[seed, k])}
    figures.append(found | dict(best_gain=float(gold[seed].max() - ground.start[seed])) | more[seed])
  return figures


def _at(name: str, divergences: np.ndarray, values: np.ndarray) -> dict[str, float]:
  return {f'{name}_{round(100 * d)}': float(value) for d, value in zip(divergences, values, strict=True)}


@functools.lru_cache(maxsize=1)  # arms differ in what they make of the same pairs
def _ground(settings: str, seeds: tuple[int, ...]) -> Ground:
  s = ml_collections.ConfigDict(json.loads(settings))
  world = s.world.to_dict()
  text = sft.get_config()
  text.world = dict(name='rmjax.worlds.sequences:Sequences', train_size=20_000, eval_size=8, **world)
  text.model.decoder = s.decoder.to_dict()
  text.data.max_length = 8 + 2 * world['length']
  text.train.update(steps=s.pretrain, rows=16, length=64, slots=4, responses=1)
  policies = policy_claims.pretrain(text, seeds)
  tokenizer = Tokenizer.load(sequences.TOKENIZER)
  decoder = Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, **s.decoder))
  known = {name: world[name] for name in ('topics', 'words', 'length', 'correlation')}
  gold = lambda batch: s.scale * sequences.gold(batch, **known)

  places = sequences.topic_pairs(sequences.Settings(**world), 'train')
  encode = lambda prompt: encode_prompt(tokenizer, Record(prompt, (), np.zeros((0, 0), np.float32), np.zeros(0, np.float32)), max_length=16)
  ids = [list(encode(sequences.prompt_text(*pair)).segments[0].tokens) for pair in places]
  prompts, lengths = pack_prompts(ids, length=max(map(len, ids)))
  sample = functools.partial(generate, decoder, max_new_tokens=world['length'], stop_tokens=(tokenizer.eos_id,))

  def draw(params: Any, key: PRNGKeyArray) -> tuple[Trees, Array, Array]:
    chosen, drawn, coins, many = jax.random.split(key, 4)
    rows = jax.random.randint(chosen, (s.pairs,), 0, len(prompts))
    found = sample(params, jnp.asarray(prompts)[rows], jnp.asarray(lengths)[rows], drawn, responses=2)
    rewards = gold(found)
    first = jax.random.bernoulli(coins, jax.nn.sigmoid(rewards[..., 0] - rewards[..., 1])).astype(jnp.float32)
    wins = jnp.stack([jnp.stack([jnp.zeros_like(first), first], -1), jnp.stack([1 - first, jnp.zeros_like(first)], -1)], -2)
    pairs = dataclasses.replace(found, labels={'wins': wins, 'ref_log_probs': found.labels['log_probs']})
    values = gold(sample(params, prompts, lengths, many, responses=s.samples))[:, 0]
    return pairs, values.mean(), _optimum(values, jnp.asarray(s.divergences))

  keys = jax.vmap(jax.random.key)(np.array(seeds))
  pairs, start, best = jax.lax.map(jax.jit(lambda xs: draw(*xs)), (policies, keys))
  return Ground(decoder, policies, prompts, lengths, pairs, np.asarray(best), np.asarray(start), gold)


def _optimum(values: Float[Array, 'X N'], divergences: Float[Array, 'D']) -> Float[Array, 'D']:
  """Gold of ref exp(r / beta) / Z at given divergences, by importance weights on samples of the reference.

  The mean KL over prompts is what is spent, so that beta is the same for all.
  """

  def point(sharpness: Array) -> tuple[Array, Array]:
    log_w = jax.nn.log_softmax(sharpness * values)
    w = jnp.exp(log_w)
    return jnp.sum(w * (log_w + jnp.log(values.shape[-1])), -1).mean(), jnp.sum(w * values, -1).mean()

  kl, gold = jax.vmap(point)(jnp.array(SHARPNESS))
  return jnp.interp(divergences**0.5, jnp.r_[0, kl] ** 0.5, jnp.r_[values.mean(), gold])


def _fit(objective: Callable, params: Any, s: ml_collections.ConfigDict, ground: Ground, seeds: Sequence[int], *, steps: int, rate: float) -> Any:
  """Trains the part `policy` of stacked parameters, all lanes in one compiled loop; each seed's lanes see the same pairs in the same order."""
  lanes = jax.tree.leaves(params)[0].shape[0]
  number = np.arange(lanes) // (lanes // len(seeds))  # of the lane's seed
  one = jax.tree.map(lambda x: x[0], params['policy'])
  options = dict(learning_rate=rate, schedule='linear', warmup=0.1, final=0.05, clip=1.0, options=dict(weight_decay=0.0))
  optimizer, _ = optimizers.from_config(one, options, steps=steps)
  step = make_step(objective, {'policy': optimizer})

  def train(params: Any, seed: Array, number: Array) -> Any:
    def body(state: Any, index: Array) -> tuple[Any, None]:
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed), index)
      rows = jax.random.randint(key, (s.rows,), 0, s.pairs)
      return step(state, jax.tree.map(lambda x: x[number, rows], ground.pairs))[0], None

    state = init_state(params, {'policy': optimizer}, jax.random.key(0))
    return jax.lax.scan(body, state, jnp.arange(steps))[0].params['policy']

  return jax.jit(jax.vmap(train))(params, jnp.array(seeds)[number], jnp.array(number))


def _train(s: ml_collections.ConfigDict, ground: Ground, seeds: Sequence[int]) -> Any:
  """Policies of an offline method; a strength is beta (of 'preferred_ft', which has none, the weight of its learning rate)."""
  model = RewardModel(ground.decoder, ImplicitRewardHead(beta=1.0, reference='cached'))

  def objective(params: Any, batch: Trees, key: PRNGKeyArray, step: Array) -> tuple[dict, dict]:
    del key, step
    scores, beta = model.apply({'params': {'backbone': params['policy']}}, batch), params['scalars']['strength']
    logits, wins = beta * model.head.preference_logits(scores), batch.labels['wins']
    if s.method == 'dpo':
      value = preference_cross_entropy(logits, wins)
    elif s.method == 'ipo':
      value = implicit.ipo(logits, wins, jnp.broadcast_to(beta, logits.shape[:-2]))
    else:
      value = implicit.chosen_negative_log_likelihood(scores.log_probs, scores.num_tokens, wins, average=False)
    return {'loss': {'loss': jnp.sum(value)}}, {'loss': {'loss': jnp.sum(wins)}}

  params = {'policy': _repeat(ground.policies, len(s.strengths)), 'scalars': {'strength': jnp.tile(jnp.array(s.strengths), len(seeds))}}
  return _fit(objective, params, s, ground, seeds, steps=s.steps, rate=s.rate)


def _optimize(s: ml_collections.ConfigDict, ground: Ground, seeds: Sequence[int]) -> tuple[Any, list[dict[str, float]]]:
  """Policies of RLOO with a KL penalty, whose coefficients are the strengths, on gold or on a reward learned from the pairs."""
  config, world = grpo.get_config('rloo'), s.world.to_dict()
  config.world = dict(name='rmjax.worlds.sequences:Sequences', train_size=20_000, eval_size=8, **world)
  config.model.update(dtype='float32', remat='none')
  config.model.decoder = s.decoder.to_dict()
  config.data.max_length = ground.prompts.shape[1]
  config.sampling.update(responses=8, max_new_tokens=world['length'])
  known = {name: world[name] for name in ('topics', 'words', 'length', 'correlation')}
  config.rewards = dict(reward=dict(name='rmjax.worlds.sequences:gold', weight=1.0 if s.method == 'learned' else s.scale, **known))
  config.train.update(steps=s.iterations, prompts=16)
  config.optimizer.update(learning_rate=s.rate, schedule='linear', warmup=0.05, final=0.05)
  strengths = np.tile(np.array(s.strengths), len(seeds))
  lane_seeds = [1000 * seed + k for seed in seeds for k in range(len(s.strengths))]
  lanes = policy_claims.start(config, lane_seeds, policies=_repeat(ground.policies, len(s.strengths)), scalars={'kl_coefficient': strengths})
  more = [{} for _ in seeds]
  if s.method == 'learned':
    model, rewards = _learn_reward(s, ground, seeds)
    accuracy = jax.vmap(lambda params, batch: _order_alike(model.apply({'params': params}, batch), ground.gold(batch)))(rewards, ground.pairs)
    more = [dict(proxy_accuracy=float(value)) for value in accuracy]
    lanes.state.params['rewards'] = _repeat(rewards, len(s.strengths))
    run = lanes.run._replace(score=lambda params, rollout: {'reward': model.head.reward(model.apply({'params': params['rewards']}, rollout))})
    lanes = lanes._replace(run=run, iterate=jax.jit(jax.vmap(lambda state, prompts: run.iterate(state, prompts)[:2]), donate_argnums=0))
  lanes, _ = policy_claims.advance(lanes, s.iterations)
  return lanes.state.params['policy']['backbone'], more


def _learn_reward(s: ml_collections.ConfigDict, ground: Ground, seeds: Sequence[int]) -> tuple[RewardModel, Any]:
  """Bradley-Terry reward models on the pairs, one a seed, from the pretrained network."""
  model = RewardModel(ground.decoder, ScalarHead())

  def objective(params: Any, batch: Trees, key: PRNGKeyArray, step: Array) -> tuple[dict, dict]:
    del key, step
    wins = batch.labels['wins']
    value = preference_cross_entropy(model.head.preference_logits(model.apply({'params': params['policy']}, batch)), wins)
    return {'loss': {'loss': jnp.sum(value)}}, {'loss': {'loss': jnp.sum(wins)}}

  example = jax.tree.map(lambda x: x[0], ground.pairs)
  heads = jax.vmap(lambda seed: model.init(jax.random.key(seed), example)['params']['head'])(jnp.array(seeds))
  params = {'policy': {'backbone': ground.policies, 'head': nn.unbox(heads)}}
  return model, _fit(objective, params, s, ground, seeds, steps=s.steps, rate=s.reward_rate)


def _measure(ground: Ground, policies: Any, seeds: Sequence[int], s: ml_collections.ConfigDict) -> tuple[np.ndarray, np.ndarray]:
  """Gold and KL [E, K] of policies, each over `samples` responses to every prompt."""
  decoder = ground.decoder
  eos = Tokenizer.load(sequences.TOKENIZER).eos_id

  def one(xs: tuple[Any, Any, PRNGKeyArray]) -> tuple[Array, Array]:
    params, reference, key = xs
    found = generate(
      decoder, params, ground.prompts, ground.lengths, key, responses=s.samples, max_new_tokens=s.world.length, stop_tokens=(eos,)
    )  # fmt: skip
    log_p, log_q = (
      jax.nn.log_softmax(decoder.apply({'params': p}, found.tokens, found.positions, found.subtree_end, method='logits')) for p in (params, reference)
    )
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)  # of the distribution of what comes next
    kl = trees.response_sums(trees.gather(divergence, found.parents), found)
    return ground.gold(found).mean(), kl.mean()

  count = jax.tree.leaves(policies)[0].shape[0] // len(seeds)
  keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(jnp.repeat(jnp.array(seeds), count))
  gold, kl = jax.lax.map(jax.jit(one), (policies, _repeat(ground.policies, count), keys))
  return np.asarray(gold).reshape(len(seeds), count), np.asarray(kl).reshape(len(seeds), count)


def _order_alike(rewards: Float[Array, 'P 1 2'], gold: Float[Array, 'P 1 2']) -> Float[Array, '']:
  """Share of pairs that two rewards order alike."""
  return jnp.mean((rewards[..., 0] > rewards[..., 1]) == (gold[..., 0] > gold[..., 1]))


def _repeat(tree: Any, count: int) -> Any:
  """Each seed's parameters, once for each strength."""
  return jax.tree.map(lambda x: jnp.repeat(x, count, 0), tree)
