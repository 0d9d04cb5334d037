"""The run-time type checker of the test suite: beartype, with ints allowed where floats are wanted (PEP 484)."""

from beartype import BeartypeConf, beartype

typed = beartype(conf=BeartypeConf(is_pep484_tower=True))
