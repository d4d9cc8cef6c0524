"""The type checker of the tests: every annotation of rmjax, shapes and dtypes of arrays included, holds on every call."""

import beartype

# An int may stand for a float, as PEP 484 has it.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
