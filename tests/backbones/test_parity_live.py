"""Import and export against transformers itself, on fresh random models (the extra `oracle`)."""

from pathlib import Path
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import Decoder
from rmjax.heads.scalar import ScalarHead
from rmjax.models import RewardModel

sys.path.append(str(Path(__file__).parents[1] / 'goldens'))
torch = pytest.importorskip('torch', reason="needs torch: pip install 'rmjax[oracle]'")
transformers = pytest.importorskip('transformers', reason="needs transformers: pip install 'rmjax[oracle]'")

from make_decoder_goldens import FAMILIES, random_model  # noqa: E402

pytestmark = pytest.mark.slow
IDS = np.random.default_rng(1).integers(3, 48, (3, 12))


def causal_layout():
  return IDS, np.broadcast_to(np.arange(IDS.shape[1]), IDS.shape), np.full(IDS.shape, IDS.shape[1])


@pytest.mark.parametrize('family', FAMILIES)
def test_language_models_go_in_and_out(family, tmp_path):
  model = random_model(family, 'CausalLM', seed=100)
  model.save_pretrained(tmp_path / 'theirs')
  decoder = Decoder(pretrained.read_config(tmp_path / 'theirs'))
  abstract = nn.unbox(jax.eval_shape(lambda key: decoder.init(key, *causal_layout(), method=decoder.logits), jax.random.key(0)))['params']
  params = pretrained.load_decoder(tmp_path / 'theirs', abstract)
  ours = decoder.apply({'params': params}, *causal_layout(), method=decoder.logits)
  theirs = model(torch.tensor(IDS)).logits.detach().numpy()
  np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)

  pretrained.save(tmp_path / 'back', decoder.config, params)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'back', attn_implementation='eager')
  np.testing.assert_allclose(again(torch.tensor(IDS)).logits.detach().numpy(), theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize('family', FAMILIES)
def test_reward_models_go_in_and_out(family, tmp_path):
  theirs = random_model(family, 'SequenceClassification', seed=200)
  theirs.save_pretrained(tmp_path / 'theirs')
  scores = theirs(torch.tensor(IDS)).logits.detach().numpy()[:, 0]

  model = RewardModel(Decoder(pretrained.read_config(tmp_path / 'theirs')), ScalarHead())
  rows = [[trees.branch(ids[:4], [ids[4:]])] for ids in IDS]
  batch = trees.pack(rows, length=12, slots=1, responses=1)
  abstract = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))['params']
  kernel = pretrained.load_score(tmp_path / 'theirs')
  params = {'backbone': pretrained.load_decoder(tmp_path / 'theirs', abstract['backbone']), 'head': {'score': {'kernel': jnp.asarray(kernel)}}}
  ours = model.apply({'params': params}, batch)[:, 0, 0]
  np.testing.assert_allclose(ours, scores, atol=1e-4 * np.abs(scores).max(), rtol=0)

  pretrained.save(tmp_path / 'back', model.backbone.config, params['backbone'], score=kernel, extra=dict(pad_token_id=0))
  again, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'back', attn_implementation='eager', output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  padded = np.concatenate([IDS, np.zeros((3, 2), IDS.dtype)], 1)
  np.testing.assert_allclose(again(torch.tensor(padded), attention_mask=torch.tensor(padded != 0)).logits.detach().numpy()[:, 0], scores, atol=1e-4, rtol=0)
