"""Folders that are for our user alone."""

from pathlib import Path

from schemas.errors import SettingsError


def private_folder(path: Path, key: str) -> None:
    """Makes the folder, or what is there, 0700. `key`: the setting that names it.

    Raises SettingsError where it is a link or another user's: whoever owns it could change what is in it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        if path.is_symlink():
            raise SettingsError(f"{path} is a link. Remove it, or change {key}.")
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be made our user's alone ({error.strerror}): others could change what is in it. "
            f"Give it to this user, or change {key}."
        ) from error
