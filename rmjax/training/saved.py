"""Parameters of reward models: fresh ones, and those of a trained run or a Hugging Face directory."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.models import build, RewardModel
from rmjax.training.checkpoints import read_meta, restore_params
from rmjax.training.mesh import make_mesh, shardings


class Saved(NamedTuple):
  """A reward model that was trained, and how its text was prepared."""

  model: RewardModel
  params: Any
  tokenizer: Tokenizer
  data: dict[str, Any]  # `max_length` and `too_long` of the run


def load_reward_model(directory: Path | str, *, best: bool = False, mesh: Mesh | None = None) -> Saved:
  """Loads a trained reward model.

  Args:
    directory: the --workdir of a training run, or a Hugging Face directory of a `...ForSequenceClassification` model with one label.
    best: the checkpoint that was best by the run's metric, instead of the newest.
    mesh: where parameters go; the first device alone if None.

  Raises:
    InputError: the directory is neither, or is broken.
  """
  directory = Path(directory)
  mesh = mesh or jax.make_mesh((1,) * len(AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:1])
  if (directory / 'checkpoints').is_dir():
    config = read_meta(directory)['config']
    tokenizer = Tokenizer.load(directory / 'tokenizer')
    decoder = pretrained.read_config(directory)
  else:
    pass


def init_params(model: RewardModel, path: str, mesh: Mesh, key: jax.Array) -> Any:
  """Parameters to start from, each laid out on the mesh as it is made.

  Args:
    model: the model.
    path: Hugging Face directory the backbone is read from, and the head if it has a scalar one; '' draws everything.
    mesh: where parameters go.
    key: PRNG key.
  """
  init = lambda key: nn.unbox(model.init(key, _example()))['params']
  layout = param_shardings(model, mesh)
  if not path:
    return jax.jit(init, out_shardings=layout)(key)
  abstract = abstract_params(model, mesh)
  # What the directory lacks (a head, adapters) is drawn; the draw of the rest is dead code.
  drawn = jax.jit(lambda key: _without_backbone(init(key)), out_shardings=_without_backbone(layout))(key)
  return {**drawn, 'backbone': pretrained.load_decoder(path, abstract['backbone'])}


def param_shardings(model: RewardModel, mesh: Mesh) -> Any:
  """NamedShardings of the model's parameters."""
  return shardings(jax.eval_shape(model.init, jax.random.key(0), _example()), mesh)['params']


def abstract_params(model: RewardModel, mesh: Mesh) -> Any:
  """Shapes, dtypes and shardings of the model's parameters."""
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), _example()))['params']
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, param_shardings(model, mesh))


def _example() -> trees.Trees:
  return trees.pack([[trees.branch([0], [[0], [0]])]], length=8, slots=1, responses=2)
