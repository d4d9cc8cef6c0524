"""What programs that run a trained reward model share: its flags, loading it, and a progress bar."""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
import functools
from pathlib import Path
import re
from typing import Any, NamedTuple, TypeVar

from absl import flags
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rmjax import named
from rmjax.data.pipeline import Encode
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.scoring import score_records
from rmjax.evaluation.text_scoring import encode_words, score_texts
from rmjax.heads.scalar import ScalarHead
from rmjax.training.mesh import make_mesh
from rmjax.training.saved import load_reward_model

Item = TypeVar('Item')


class Scorer(NamedTuple):
  """A loaded reward model, or a function of text."""

  encode: Encode
  score: Callable[[Iterable[Record], Encode], Iterator[Scored]]  # as `score_records`
  kind: str  # as RewardBench's results have it


def load(
  checkpoint: str,
  *,
  best: bool = False,
  dtype: str = 'float32',
  rows: int = 4,
  length: int = 1024,
  fsdp: int = 1,
  bad_rows: str = 'strict',
  head: Mapping[str, Any] | None = None,
  suffix: str | None = None,
) -> Scorer:
  """Loads a reward model, or a function of text.

  The arguments are the flags of the same names, `bad_rows` for what cannot be tokenised, `head` as `load_reward_model` has it.

  Raises:
    InputError: there is none, it does not fit the devices, or the tokenizer does not know the suffix.
  """
  if re.fullmatch(r'[\w.]+:[\w.]+', str(checkpoint)) and not Path(checkpoint).exists():
    if best or head or suffix:
      raise InputError(f'--checkpoint={checkpoint} is a function of text: it has no {"best checkpoint" if best else "head" if head else "suffix"}')
    function = named.resolve('--checkpoint', checkpoint, 'my_rewards:brevity')
    return Scorer(encode_words, functools.partial(score_texts, checkpoint, function), 'Custom Classifier')
  if dtype == 'float32':  # accelerators would round the factors to bfloat16 or TF32
    jax.config.update('jax_default_matmul_precision', 'highest')
  mesh = make_mesh(data=1, fsdp=-1) if fsdp == -1 else make_mesh(fsdp=fsdp)
  saved = load_reward_model(checkpoint, best=best, mesh=mesh, head=head)
  cast = lambda decoder: decoder and decoder.clone(dtype=jnp.dtype(dtype))
  model = saved.model.clone(backbone=cast(saved.model.backbone), reference=cast(saved.model.reference))
  if suffix and saved.tokenizer.unk_id in saved.tokenizer.backend.encode(suffix, add_special_tokens=False).ids:
    raise InputError(f'--suffix={suffix!r}: the tokenizer does not know all of it; choose text that it has tokens for')
  text = saved.data if suffix is None else {**saved.data, 'suffix': suffix}
  encode = functools.partial(saved.tokenizer.encode_record, **text, bad_rows=bad_rows)
  kind = 'DPO' if model.reference is not None else 'Seq. Classifier' if isinstance(model.head, ScalarHead) else 'Custom Classifier'
  return Scorer(encode, functools.partial(score_records, model, saved.params, mesh=mesh, rows=rows, length=length), kind)


def define_flags() -> None:
  """Defines the flags; only a program that is run does, so that any number of them can be imported together."""
  flags.DEFINE_string(
    'checkpoint',
    None,
    'The --workdir of a training run (of DPO too), a Hugging Face directory of a ForSequenceClassification model, or module:function, of text: '
    'f(prompts, completions, **columns) -> a number or None for each completion.',
    required=True,
  )
  flags.DEFINE_bool('best', False, "Take the run's best checkpoint instead of its newest.")
  flags.DEFINE_string(
    'head', '', "Reads any language model as a reward model: a head without parameters and its fields, 'rmjax.rewards.endogenous:EndogenousHead,mode=mean'."
  )
  flags.DEFINE_string(
    'suffix', None, "Text after each response in place of config.data.suffix: the principle that a yes/no reward is to judge by. End it as training's ends."
  )
  flags.DEFINE_enum('bad_rows', 'strict', ['strict', 'lenient'], 'Whether a row that cannot be used stops the program, or is reported.')
  flags.DEFINE_string('columns', '', "Other names of columns: 'ours=theirs' pairs, separated by commas.")
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of matrix products. In bfloat16 a reward depends a little on its batch.')
  flags.DEFINE_integer('rows', 4, 'Rows of a batch: more of them for an accelerator.', lower_bound=1)
  flags.DEFINE_integer('length', 1024, 'Tokens of a row; doubled where a record needs more.', lower_bound=1)
  flags.DEFINE_integer('fsdp', 1, 'Devices that parameters are split over; -1 for all.')


def load_from_flags(*, bad_rows: str, checkpoint: str = '') -> Scorer:
  """The model that the command line names, or another `checkpoint` with the same flags."""
  f = flags.FLAGS
  head = read_head(f.head) if f.head else None
  options = dict(best=f.best, dtype=f.dtype, rows=f.rows, length=f.length, fsdp=f.fsdp, suffix=f.suffix)
  return load(checkpoint or f.checkpoint, bad_rows=bad_rows, head=head, **options)


def read_head(text: str) -> dict[str, Any]:
  """dict(name, **fields) of 'name,field=value,...'.

  Raises:
    InputError: something else than fields after the name.
  """
  name, *fields = re.split(r',(?=\w+=)', text)  # commas within a tuple stay
  pairs = [field.split('=', 1) for field in fields]
  if ',' in name or not all(all(pair) for pair in pairs):
    raise InputError(f'--head={text}: give a name and then fields, such as rmjax.rewards.endogenous:EndogenousHead,mode=mean,alpha=0.5')

  def value(written: str) -> Any:
    try:
      return ast.literal_eval(written)
    except (SyntaxError, ValueError):
      return written  # a word needs no quotes

  return {'name': name, **{field: value(written) for field, written in pairs}}


def columns_from_flags() -> dict[str, str]:
  """Our column -> the data's.

  Raises:
    InputError: something else than pairs.
  """
  pairs = [pair.split('=') for pair in flags.FLAGS.columns.split(',') if pair]
  if not all(len(pair) == 2 and all(pair) for pair in pairs):
    raise InputError(f"--columns={flags.FLAGS.columns}: give 'ours=theirs' pairs, separated by commas, such as prompt=question,chosen=good")
  return dict(pairs)


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
  """Passes items on, under a progress bar where there is a terminal."""
  console = Console(stderr=True)
  columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.speed:,.0f} records/s'), TimeElapsedColumn())
  with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
    yield from bar.track(items, total=total, description=what)
