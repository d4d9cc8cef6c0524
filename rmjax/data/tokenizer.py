"""Text records to token trees: chat templates, tokenisation of each path as a whole, truncation."""

from collections.abc import Sequence
import datetime
import json
import os
from pathlib import Path
import shutil
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers

from rmjax import trees
from rmjax.data.records import BadRecord, Messages, Record
from rmjax.errors import InputError

FILES = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja')

# For messages where the tokenizer has no template: the transcript of Bai et al., Training a Helpful and Harmless Assistant (2022).
PLAIN_TEMPLATE = (
  "{% for message in messages %}{{ '\\n\\n' + {'user': 'Human', 'assistant': 'Assistant'}.get(message.role, message.role | capitalize) "
  "+ ': ' + message.content }}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant: ' }}{% endif %}"
)


class Encoded(NamedTuple):
  """The tokens of a path: of prompt, response, suffix and critique."""

  ids: list[int]
  first: int  # place of the response's first
  tail: int = 0  # how many at the end are not to be cut: those that hold a character of the suffix, and the critique's


class Tokenizer:
  """A Hugging Face tokenizer with its chat template, without transformers.

  Attributes:
    vocab_size: one more than the largest token id.
    bos_id: -1 if there is none; `eos_id`, `pad_id` and `unk_id` likewise.
    has_chat_template: whether messages are rendered by the tokenizer's own template; else by `PLAIN_TEMPLATE`.
  """

  def __init__(self, backend: tokenizers.Tokenizer, special: dict[str, str], chat_template: str | None, files: Sequence[Path] = ()):
    """Wraps a tokenizer; see `load`."""
    self.backend = backend
    self.special = special
    self.has_chat_template = bool(chat_template)
    self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
    ids = {name: backend.token_to_id(token) for name, token in special.items()}
    self.bos_id, self.eos_id, self.pad_id, self.unk_id = (-1 if ids.get(name) is None else ids[name] for name in ('bos', 'eos', 'pad', 'unk'))
    try:
      self._template = _environment().from_string(chat_template or PLAIN_TEMPLATE)
    except jinja2.TemplateSyntaxError as e:
      raise InputError(f'the chat template is malformed at line {e.lineno}: {e.message}') from e
    self._files = files

  @classmethod
  def load(cls, path: Path | str) -> 'Tokenizer':
    """Reads a Hugging Face directory, or a tokenizer.json alone.

    Raises:
      InputError: there is no tokenizer.json, or a file or the chat template is malformed.
    """
    path = Path(path)
    directory, main = (path, path / 'tokenizer.json') if path.is_dir() else (path.parent, path)
    if not main.is_file():
      raise InputError(f'{path} holds no tokenizer.json: put the model\'s there, or, to train, set config.data.tokenizer to a directory or file that has it')
    try:
      backend = tokenizers.Tokenizer.from_file(str(main))
    except Exception as e:  # the library raises Exception itself
      raise InputError(f'{main} is no tokenizer: {e}') from e
    backend.no_truncation()
    backend.no_padding()
    config = {}
    for name in ('special_tokens_map.json', 'tokenizer_config.json') if path.is_dir() else ():
      if (directory / name).is_file():
        config |= _read_json(directory / name)
    special = {name: _content(config.get(f'{name}_token')) for name in ('bos', 'eos', 'pad', 'unk')}
    if not path.is_dir():  # a bare file does not say which tokens are special
      usual = dict(bos=('<bos>', '<s>'), eos=('<eos>', '</s>'), pad=('<pad>',), unk=('<unk>',))
      special = {name: next((token for token in usual[name] if backend.token_to_id(token) is not None), None) for name in usual}
    template = config.get('chat_template')
    if (directory / 'chat_template.jinja').is_file() and path.is_dir():
      template = (directory / 'chat_template.jinja').read_text()
    if isinstance(template, list):  # several named ones
      template = {item['name']: item['template'] for item in template}.get('default')
    files = [directory / name for name in FILES if (directory / name).is_file()] if path.is_dir() else [main]
    return cls(backend, {name: token for name, token in special.items() if token}, template, files)

  def save(self, directory: Path | str) -> None:
    """Copies the tokenizer's files."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for file in self._files:
      target = Path(directory) / (file.name if file.name in FILES else 'tokenizer.json')
      if target.resolve() != file.resolve():
        shutil.copyfile(file, target)
    if not (Path(directory) / 'tokenizer_config.json').exists():
      config = {'tokenizer_class': 'PreTrainedTokenizerFast', **{f'{name}_token': token for name, token in self.special.items()}}
      (Path(directory) / 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n')

  def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
    """The chat template's text, as `transformers`' `apply_chat_template(tokenize=False)` gives it.

    Raises:
      InputError: the template refuses the messages.
    """
    try:
      return self._template.render(
        messages=[dict(message) for message in messages],
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
        **{f'{name}_token': token for name, token in self.special.items()},
      )
    except Exception as e:  # a template is a program, and raises what it likes
      raise InputError(f'the chat template refuses the messages: {e}') from e

  def encode_path(self, prompt: str | Messages, response: str) -> tuple[list[int], int]:
    """Tokens of prompt and response, tokenised once as a whole so that no token merges across a seam that serving would not have.

    The tokenizer's chat template says where BOS and EOS are. Text and transcripts begin as the tokenizer has it, and end with EOS.

    Returns:
      The ids, and the place of the first that holds a character of the response.

    Raises:
      InputError: the response has no tokens of its own.
    """
    return self._encode(prompt, response, '')[:2]

  def encode_opening(self, prompt: str | Messages) -> list[int]:
    """Tokens of a prompt that is to be answered: text as it begins a text, messages with the template's generation prompt."""
    if not isinstance(prompt, str):
      text = self.render(prompt, add_generation_prompt=True)
      return list(self.backend.encode(text, add_special_tokens=not self.has_chat_template).ids)
    ids = list(self.backend.encode(prompt).ids)
    return ids[:-1] if len(ids) > 1 and ids[-1] == self.eos_id else ids  # a tokenizer that ends every text would end this one

  def decode(self, ids: Sequence[int]) -> str:
    """Text of tokens, special ones left out."""
    return self.backend.decode(list(ids), skip_special_tokens=True)

  def _encode(self, prompt: str | Messages, response: str, suffix: str) -> Encoded:
    """`encode_path` with a suffix, which stands in place of whatever would end the response."""
    if isinstance(prompt, str):
      text, start = prompt + response + suffix, len(prompt)
    else:
      opening, text = self.render(prompt, add_generation_prompt=True), self._render_answer(prompt, response + suffix)
      if suffix:
        closing = os.path.commonprefix([self._render_answer(prompt, content)[::-1] for content in 'ab'])[::-1]
        text = text.removesuffix(closing)
        if not text.endswith(suffix):
          raise InputError(f'the chat template does not keep data.suffix = {suffix!r} at the end of a response: leave out the space at its end')
      start = next((i for i, (a, b) in enumerate(zip(text, opening, strict=False)) if a != b), min(len(text), len(opening)))
    templated = self.has_chat_template and not isinstance(prompt, str)
    encoding = self.backend.encode(text, add_special_tokens=not templated)
    ids = list(encoding.ids)
    spans = [(end if end > begin and not special else -1) for (begin, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)]
    first = next((i for i, end in enumerate(spans) if end > start), None)
    if first is None or (isinstance(prompt, str) and not response):
      raise InputError('a response has no tokens')
    if suffix:
      # What the tokenizer puts at the end of every text would come between the suffix and the token that follows it.
      last = max(i for i, end in enumerate(spans) if end >= 0)
      ids = ids[: last + 1]
      return Encoded(ids, first, sum(end > len(text) - len(suffix) for end in spans))
    if not templated and self.eos_id >= 0 and ids[-1] != self.eos_id:
      ids.append(self.eos_id)
    return Encoded(ids, first)

  def _render_answer(self, prompt: Messages, content: str) -> str:
    return self.render([*prompt, {'role': 'assistant', 'content': content}])

  def next_token_ids(self, texts: Sequence[str], after: str) -> tuple[int, ...]:
    """Ids of the tokens that continue a text, such as the ratings '1'..'9' after 'Score:'.

    Args:
      texts: the continuations. '7' and ' 7' are different tokens to most tokenizers: take what the text really continues with.
      after: what comes before.

    Raises:
      InputError: a continuation is not one token there, is unknown to the tokenizer, or is the same token as another.
    """
    encode = lambda text: self.backend.encode(text, add_special_tokens=False)
    before, ids = encode(after).ids, []
    for text in texts:
      encoding = encode(after + text)
      if encoding.ids[: len(before)] != before:
        raise InputError(f'the tokenizer joins {text!r} with the end of {after!r}: {" ".join(encoding.tokens)}')
      tokens, added = encoding.tokens[len(before) :], encoding.ids[len(before) :]
      if len(added) != 1:
        raise InputError(f'the tokenizer splits {text!r} after {after!r} into {len(added)} tokens: {" ".join(tokens) or "none"}; choose texts of one token')
      if added[0] == self.unk_id:
        raise InputError(f'the tokenizer does not know {text!r}: choose texts of one token')
      if added[0] in ids:
        raise InputError(f'the tokenizer has one token for {texts[ids.index(added[0])]!r} and {text!r} after {after!r}: choose different texts')
      ids += added
    return tuple(ids)

  def encode_record(
    self,
    record: Record,
    *,
    max_length: int,
    max_size: int | None = None,
    too_long: str = 'truncate',
    bad_rows: str = 'strict',
    text_prompts: str = 'plain',
    suffix: str = '',
    layout: str = 'branch',
    separator: str = '',
  ) -> trees.Tree | str:
    """A record's tree: the tokens that all its responses share, once, and then each response.

    Args:
      record: the text.
      max_length: most tokens of a path, prompt and response together.
      max_size: most tokens of the tree, prompt and all responses together: a row's length. None sets no limit.
      too_long: 'truncate' cuts a longer response at its end, and a prompt that leaves no room for one at its beginning, BOS kept;
        'refuse' gives up the record.
      bad_rows: 'strict' raises for a record that cannot be tokenised, 'lenient' refuses it.
      text_prompts: 'plain' joins prompt and response as they are, 'chat' takes a text prompt for what the user says.
      suffix: text that follows each response in place of the end-of-text token (or of what the chat template ends a turn with), for a head
        that reads what comes next; it is tokenised with the whole and belongs to the response. Truncation cuts a response before it.
      layout: 'branch' has responses that are blind to one another, 'chain' each after the one before, which it sees. The tokens of a response
        are the same; in a chain the whole tree is one path, of at most max_length tokens.
      separator: text between the responses of a chain; no response holds it.

    Returns:
      The tree, with labels `wins`, `ratings`, `weights`, `margins`, `truncated` and the record's own; or why it is refused. Where the record
      has critiques, each follows its response (and whatever ends that), with an end-of-text token, as more of its tokens; label `critique_lengths`
      int32[N] says how many of a response's last tokens they are. Truncation cuts the response before.

    Raises:
      BadRecord: a response has no tokens or holds the separator, the chat template refuses the messages, or there are not as many critiques as responses.
      InputError: an argument has no such choice, or the tokenizer does not know the separator.

    Reference: the chain is the layout of YOJO (2026); that each response keeps its end-of-text token there is ours.
    """
    _check_choice('layout', layout, ('branch', 'chain'))
    _check_choice('too_long', too_long, ('truncate', 'refuse'))
    _check_choice('bad_rows', bad_rows, ('strict', 'lenient'))
    _check_choice('text_prompts', text_prompts, ('plain', 'chat'))
    prompt = record.prompt
    if text_prompts == 'chat' and isinstance(prompt, str) and prompt:
      prompt = [{'role': 'user', 'content': prompt}]
    between = None
    if layout == 'chain':
      between = self._separator_ids(separator)
      max_size = max_length if max_size is None else min(max_length, max_size)
    try:
      encoded = [self._encode(prompt, response, suffix) for response in record.responses]
      if between:
        _check_separator(record.responses, encoded, separator, between)
      critiques = self._critique_ids(record)
      encoded = [one._replace(ids=one.ids + ids, tail=one.tail + len(ids)) for one, ids in zip(encoded, critiques, strict=True)]
    except InputError as e:
      if bad_rows == 'lenient':
        return f'{record.where}: {e}'
      raise BadRecord(f'{record.where}: {e}') from e
    tree, longest = _tree(encoded, between), max(len(one.ids) for one in encoded)
    reason = None
    if longest > max_length:
      reason = f'{record.where}: {longest} tokens, and data.max_length is {max_length}'
    elif max_size is not None and trees.size(tree) > max_size:
      most = f'data.max_length is {max_length}' if max_size == max_length else f'a row has {max_size}'
      reason = f'{record.where}: prompt and responses take {trees.size(tree)} tokens, and {most}'
    if reason:
      tree = self._truncate(encoded, max_length, max_size, between) if too_long == 'truncate' else None
    if tree is None:
      return reason
    labels = {
      'wins': record.wins.astype(np.float32),
      'ratings': record.ratings.astype(np.float32),
      'weights': np.float32(record.weight),
      'margins': np.float32(record.margin),
      'truncated': np.int32(bool(reason)),
      **({'critique_lengths': np.array([len(ids) for ids in critiques], np.int32)} if record.critiques else {}),
      **record.labels,
    }
    return tree._replace(labels=labels)

  def _critique_ids(self, record: Record) -> list[list[int]]:
    """Tokens of each response's critique; none where it has none."""
    count = len(record.responses)
    if record.critiques and len(record.critiques) != count:
      raise InputError(f"{len(record.critiques)} critiques for {count} responses: give one each, '' where there is none")
    end = [self.eos_id] if self.eos_id >= 0 else []
    encode = lambda text: [*self.backend.encode(text, add_special_tokens=False).ids, *end] if text else []
    return [encode(text) for text in record.critiques or [''] * count]

  def _separator_ids(self, separator: str) -> list[int]:
    ids = list(self.backend.encode(separator, add_special_tokens=False).ids)
    if self.unk_id in ids or (separator and not ids):
      raise InputError(f'data.separator = {separator!r}: the tokenizer does not know it; choose text that it has tokens for')
    return ids

  def _truncate(self, encoded: Sequence[Encoded], max_length: int, max_size: int | None, between: Sequence[int] | None = None) -> trees.Tree | None:
    """The tree cut at the greatest depth where it fits; None if nothing of a response is left there."""
    depth = min(max_length, max(len(one.ids) for one in encoded))
    while depth > 0:
      cut = self._cut(encoded, depth)
      if any(len(ids) - tail <= first for ids, first, tail in cut):
        return None
      tree = _tree(cut, between)
      excess = 0 if max_size is None else trees.size(tree) - max_size
      if excess <= 0:
        return tree
      depth -= -(-excess // len(encoded))  # a step of depth takes at most one token from every response
    return None

  def _cut(self, encoded: Sequence[Encoded], depth: int) -> list[Encoded]:
    first, last = (choose(one.first for one in encoded) for choose in (min, max))
    tail = max(one.tail for one in encoded)
    if last + tail >= depth:  # leave half to the response, or all it needs
      room = min(max(len(one.ids) - one.first for one in encoded), max(depth // 2, 1 + tail))
      keep = int(encoded[0].ids[0] == self.bos_id and first > 1)
      stop = min(keep + last - (depth - room), first)
      encoded = [one._replace(ids=one.ids[:keep] + one.ids[stop:], first=one.first - (stop - keep)) for one in encoded]
    shorten = lambda ids, tail: ids if len(ids) <= depth else ids[: max(depth - tail, 0)] + ids[len(ids) - tail :]
    return [one._replace(ids=shorten(one.ids, one.tail)) for one in encoded]


def _tree(encoded: Sequence[Encoded], between: Sequence[int] | None = None) -> trees.Tree:
  """Shared prompt, then each path's remainder. Tokens of the prompt that merged differently before different responses stay no response's.

  `between` chains the responses, with these tokens of none of them between.
  """
  shared = 0
  shortest = min(one.first for one in encoded)
  while shared < shortest and len({one.ids[shared] for one in encoded}) == 1:
    shared += 1
  segments = [trees.Segment(encoded[0].ids[:shared])] if shared else []
  root = len(segments) - 1
  for n, (ids, first, _) in enumerate(encoded):
    parent = root if between is None else len(segments) - 1
    opening = [*(between if between and n else ()), *ids[shared:first]]
    if opening:
      segments.append(trees.Segment(opening, parent))
      parent = len(segments) - 1
    segments.append(trees.Segment(ids[first:], parent, n))
  return trees.Tree(segments)


def _check_separator(responses: Sequence[str], encoded: Sequence[Encoded], separator: str, between: Sequence[int]) -> None:
  """Whoever writes a response must not be able to end it and begin another."""
  for n, (response, (ids, first, _)) in enumerate(zip(responses, encoded, strict=True)):
    inside = any(ids[i : i + len(between)] == between for i in range(first, len(ids)))
    if inside or (separator.strip() and separator.strip() in response):
      raise InputError(f'response {n} holds data.separator = {separator!r}: choose a separator that no response holds')


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise InputError(f"data.{name} = '{value}': choose {' or '.join(map(repr, choices))}")


class _Generation(jinja2.ext.Extension):
  """{% generation %}...{% endgeneration %} marks what the assistant says; its text is what stands between."""

  tags = frozenset({'generation'})

  def parse(self, parser: Any) -> list[Any]:
    next(parser.stream)
    return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def _environment() -> jinja2.Environment:
  """Jinja as chat templates expect it: sandboxed, blocks trimmed, with the helpers that transformers defines."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  def tojson(x: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

  environment.filters['tojson'] = tojson
  environment.globals['raise_exception'] = raise_exception
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  return environment


def _content(token: Any) -> str | None:
  return token['content'] if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as e:
    raise InputError(f'{path}:{e.lineno}: malformed JSON: {e.msg}') from e
