"""Secrets: the settings name a file or an environment variable; what is in it is read when it is used."""

import os
from pathlib import Path

from schemas.errors import SettingsError


def read(key: str, env: str, file: str) -> str | None:
    """What `<key>_env` or `<key>_file` names; None where neither is set.

    Raises SettingsError, whose text never holds the secret."""
    if env:
        if env not in os.environ:
            raise SettingsError(f"{key}_env: the environment has no {env}. Set it.")
        found, where = os.environ[env], f"{key}_env: {env}"
    elif file:
        found, where = _content(key, file), f"{key}_file: {file}"
    else:
        return None
    if not found:
        raise SettingsError(f"{where} is empty. Put the secret there.")
    return found


def _content(key: str, file: str) -> str:
    try:
        return Path(file).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        # the decoder's own text would quote the secret
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{key}_file {file} cannot be read: {why}.") from None
