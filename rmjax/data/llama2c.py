"""Tokenizers of llama2.c (karpathy's tok*.bin) to Hugging Face tokenizer.json."""

import json
from pathlib import Path
import struct

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from rmjax.errors import InputError

SPECIAL = ('<unk>', '<s>', '</s>')
BYTES = tuple(f'<0x{byte:02X}>' for byte in range(256))


def convert(source: Path | str, directory: Path | str) -> None:
  """Writes tokenizer.json and tokenizer_config.json that encode as llama2.c does: BOS, a dummy space, merges by score, bytes as a last resort.

  Args:
    source: int32 size of the longest piece, then float32 score, int32 size and bytes of each piece; ids in order, 3 to 258 the single bytes.
    directory: where to write; made if absent.

  Raises:
    InputError: the file is cut short, or no such tokenizer.
  """
  pieces, scores = _read(Path(source))
  ids = {piece: i for i, piece in enumerate(pieces)}
  # Two pieces merge where their union is one; the union of the best score first.
  merges = []
  for i in range(len(SPECIAL) + len(BYTES), len(pieces)):
    cuts = ((pieces[i][:cut], pieces[i][cut:]) for cut in range(1, len(pieces[i])))
    merges += [(-scores[i], i, left, right) for left, right in cuts if left in ids and right in ids]
  merges.sort(key=lambda merge: merge[:2])
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=ids, merges=[(left, right) for _, _, left, right in merges], unk_token='<unk>', fuse_unk=True, byte_fallback=True)
  )
  backend.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  backend.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
  backend.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  backend.save(str(directory / 'tokenizer.json'))
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  (directory / 'tokenizer_config.json').write_text(json.dumps({**config, 'clean_up_tokenization_spaces': False}, indent=2) + '\n')


def _read(path: Path) -> tuple[list[str], list[float]]:
  """Pieces, spelt as SentencePiece does, and their scores."""
  data, pieces, scores, place = path.read_bytes(), [], [], 4
  while place < len(data):
    score, size = struct.unpack_from('<fi', data, place) if place + 8 <= len(data) else (0.0, 1)
    piece = data[place + 8 : place + 8 + size]
    if size < 1 or len(piece) < size:
      raise InputError(f'{path}: cut short at byte {place}, or no llama2.c tokenizer')
    pieces.append(piece)
    scores.append(score)
    place += 8 + size
  if not pieces or data[:4] != struct.pack('<i', max(map(len, pieces))):
    raise InputError(f'{path}: cut short, or no llama2.c tokenizer: no piece has the size that its first number names')
  try:
    names = [*SPECIAL, *(piece.decode().replace(' ', '▁') for piece in pieces[len(SPECIAL) :])]
  except UnicodeDecodeError as e:
    raise InputError(f'{path}: no llama2.c tokenizer: a piece is not UTF-8') from e
  if tuple(names[len(SPECIAL) : len(SPECIAL) + len(BYTES)]) != BYTES or len(set(names)) < len(names):
    raise InputError(f'{path}: no llama2.c tokenizer: ids 3 to 258 are not the single bytes, or a piece is there twice')
  return names, scores
