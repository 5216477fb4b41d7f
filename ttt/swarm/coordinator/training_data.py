"""Whether what a run file says of its data can be found, before volunteers look for it. Reads no sample."""

from __future__ import annotations

from ttt.data.files import HttpClient, RetryPolicy
from ttt.data.shard_list import find_shards
from ttt.data.stream import SCENES
from ttt.errors import InvalidInput


def is_a_name(source: str) -> bool:
    """Neither an address nor a Hub id nor a path: if not one of those we know, it is misspelt on every machine."""
    return not {"/", "*"} & set(source)


def check_source(source: str) -> None:
    """InvalidInput where `source` was not found from here; a remote one is tried three times."""
    if source == SCENES:
        return
    web = HttpClient(RetryPolicy(attempts=3, timeout=10.0))
    try:
        find_shards(source, web)
    except Exception as error:  # the Hub's libraries have many
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput(f'[data] source of the run file is neither "{SCENES}" nor found from here: {why}') from None
    finally:
        web.close()
