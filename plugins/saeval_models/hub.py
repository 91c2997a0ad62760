"""Files of the Hugging Face hub: from the cache, else over the network, without long waits for a hub that is away."""

from __future__ import annotations

from pathlib import Path

from saeval.plugin import SaevalError

_PATIENCE_SECONDS = 3.0


def absence() -> str | None:
    """Why the hub cannot be asked, None where it can: one request, where the hub's own client makes six."""
    from huggingface_hub import constants  # late: not needed to list adapters
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    except Exception as error:  # the client's library, and so its errors, differ between versions
        return f"{constants.ENDPOINT} cannot be reached: {type(error).__name__}"
    return None


def hub_file(name: str, file: str, revision: str | None) -> Path:
    """A file of a hub model; `SaevalError` where it cannot be had."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache  # late: not needed to list adapters

    remedy = "check the name"
    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        reason = absence()
        remedy = "download it where there is a network and give its folder as 'path'" if reason else remedy
        if reason is None:
            return Path(hf_hub_download(name, file, revision=revision))
    except (OSError, ValueError) as error:
        reason = type(error).__name__
    at = f" at revision '{revision}'" if revision else ""
    if Path(name).is_dir():
        remedy = f"'{name}' is a local folder: give it as 'path'"
    raise SaevalError(f"{file} of hub model '{name}'{at} could not be had ({reason}); {remedy}")
