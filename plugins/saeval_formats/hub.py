"""Checkpoints on the Hugging Face hub: only the files that a reference names are downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saeval.plugin import SaevalError


def snapshot(repo: str, revision: str | None, pattern: str, format: str, beside: Sequence[str] = ()) -> Path:
    """The local folder of a repository, in which the files that `pattern` matches are present.

    `pattern` is a file, a folder (with all below it) or a glob of either; `beside` are others that may be there.
    Offline (`HF_HUB_OFFLINE`) what was downloaded before is used. `SaevalError` where the repository cannot be had.
    """
    from huggingface_hub import constants, snapshot_download  # late: most suites name no hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    spellings = dict.fromkeys((pattern, pattern.replace("[", "[[]")))  # brackets may be those of a name
    wanted = [*(f"{one.rstrip('/')}{below}" for one in spellings for below in ("", "/**")), *beside]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except HFValidationError:
        raise SaevalError(f"{format}: 'repo: {repo}' is no name of a hub repository, such as org/name") from None
    except LocalEntryNotFoundError:
        why = "this run is offline" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise SaevalError(
            f"{format}: repository '{repo}' was not downloaded before and {why}; "
            "run `saeval fetch SUITE` where there is a network"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SaevalError(f"{format}: repository '{repo}' cannot be had: {reason}") from None
