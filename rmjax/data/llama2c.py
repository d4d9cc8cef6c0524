"""Tokenizers of llama2.c (karpathy's tok*.bin) to Hugging Face tokenizer.json."""

import json
from pathlib import Path
import struct

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from rmjax.errors import InputError

SPECIAL = {0: '<unk>', 1: '<s>', 2: '</s>'}


def convert(source: Path | str, directory: Path | str) -> None:
  """Writes tokenizer.json and tokenizer_config.json that encode as llama2.c does: BOS, a dummy space, merges by score, bytes as a last resort.

  Args:
    source: int32 longest piece, then float32 score, int32 size and bytes of each piece; ids in order, 3 to 258 the bytes.
    directory: where to write; made if absent.

  Raises:
    InputError: the file is cut short.
  """
  pieces, scores = _read(Path(source))
  vocabulary = {SPECIAL.get(i, piece.replace(' ', '▁')): i for i, piece in enumerate(pieces)}
  names = list(vocabulary)
  # A pair merges when its union is a piece; the best score goes first. Ids break ties, as in SentencePiece.
  merges = []
  for name, i in vocabulary.items():
    if i >= 259 and len(name) > 1:
      merges += [(-scores[i], i, name[:cut], name[cut:]) for cut in range(1, len(name)) if name[:cut] in vocabulary and name[cut:] in vocabulary]
  merges.sort(key=lambda merge: merge[:2])
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocabulary, merges=[(left, right) for _, _, left, right in merges], unk_token='<unk>', fuse_unk=True, byte_fallback=True)
  )
  backend.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  backend.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names[:3]])
  backend.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  backend.save(str(directory / 'tokenizer.json'))
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  (directory / 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n')


def _read(path: Path) -> tuple[list[str], list[float]]:
  data, place = path.read_bytes(), 4
  pieces, scores = [], []
  while place < len(data):
    try:
      score, size = struct.unpack_from('<fi', data, place)
    except struct.error as e:
      raise InputError(f'{path} is cut short at byte {place}') from e
    piece = data[place + 8 : place + 8 + size]
    if len(piece) < size:
      raise InputError(f'{path} is cut short at byte {place}')
    pieces.append(piece.decode('utf-8'))
    scores.append(score)
    place += 8 + size
  return pieces, scores
