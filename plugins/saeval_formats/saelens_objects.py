"""SAEs computed by SAELens' own classes, without state between calls."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float

from saeval.plugin import Encoding, LiveSAE, SaevalError, torch
from saeval_formats.folding import rescaled
from saeval_formats.saelens_config import parsed_config

if TYPE_CHECKING:
    from torch import Tensor


class Context(NamedTuple):
    """The inputs of SAELens' `decode` besides the features."""

    left: Mapping[str, Any]
    """The attributes that `encode` set on the object."""
    predicted: Float[Tensor, "batch seq d_sae"] | None
    """A temporal SAE's features predicted from earlier tokens, which are also decoded."""
    x: Float[Tensor, "batch seq d_in"] | None
    """The input of a skip connection."""


class LibrarySAE(LiveSAE):
    """A SAELens object: its own `encode` and `decode`, with `decode(encode(x))` equal to its `forward(x)`.

    Between `encode` and `decode`, SAELens keeps norms and head sizes on the object; here the encoding carries them,
    and every call leaves the object unchanged. Heads are flattened: at hook_z, inputs and outputs are
    `[batch, seq, n_heads · d_head]`. A temporal SAE reads all tokens of the row up to each token.
    """

    def __init__(self, module: Any, hook_name: str | None = None, name: str = "sae") -> None:
        config = parsed_config(Path(name), module.cfg.to_dict())
        # `hook_name` of a transcoder's metadata is the hook that it reads.
        if config.transcoder and not (hook_name or config.hook_name):
            raise SaevalError(f"{name}: name the hook that the transcoder replaces, as in saes=[(sae, 'HOOK')]")
        super().__init__(module, hook_name or config.hook_name, name)
        self.d_in, self.d_sae, self.d_out = config.d_in, config.d_sae, config.d_out
        self.input_hook = config.input_hook
        self.reads_earlier = config.architecture == "temporal"
        if config.rescale:
            self._weights = rescaled(self._weights)

    @property
    def has_features(self) -> bool:
        return True

    def encode(self, activations: Float[Tensor, "batch seq d_in"]) -> Encoding:
        module = self.module
        x = activations.unsqueeze(-2) if self._by_head else activations
        with self.evaluating(), self._restored() as before:
            predicted = None
            if hasattr(module, "encode_with_predictions"):
                acts, predicted = module.encode_with_predictions(x)
            else:
                acts = module.encode(x)
            left = {key: value for key, value in vars(module).items() if before.get(key, before) is not value}
        skips = getattr(module, "W_skip", None) is not None
        dense = self._encoding(acts, activations).feature_acts
        return Encoding(dense, Context(left, predicted, activations if skips else None))

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d_out"]
    ) -> Float[Tensor, "batch seq d_out"]:
        assert encoding is not None
        left, predicted, x = encoding.context
        acts = encoding.feature_acts
        with self.evaluating(), self._restored(), _without_warnings():
            vars(self.module).update(left)
            x_hat: Tensor = self.module.decode(acts if predicted is None else acts + predicted)
        x_hat = x_hat.flatten(-2) if self._by_head else x_hat
        if x is not None:
            x_hat = x_hat + x.to(x_hat.dtype) @ self.module.W_skip.T
        return x_hat.to(activations.dtype)

    @property
    def _by_head(self) -> bool:
        return bool(getattr(self.module, "hook_z_reshaping_mode", False))

    @contextmanager
    def _restored(self) -> Iterator[dict[str, Any]]:
        """Yield the object's attributes, and restore them at the end."""
        attributes = vars(self.module)
        before = dict(attributes)
        try:
            yield before
        finally:
            attributes.clear()
            attributes.update(before)


def loaded(folder: Path, raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return SAELens' object of a folder's config and tensors, on their device and in their dtype."""
    sae_lens = library()
    some = next(iter(tensors.values()))
    device, dtype = str(some.device), str(some.dtype).removeprefix("torch.")

    def read(*_: Any, **__: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {**copy.deepcopy(dict(raw)), "device": device, "dtype": dtype}, dict(tensors)

    try:
        return sae_lens.SAE.load_from_disk(folder, device=device, dtype=dtype, converter=read)
    except Exception as error:  # SAELens raises arbitrary exceptions
        raise SaevalError(f"{folder}: SAELens cannot load this SAE ({first_line(error)}); save it again") from None


def expected_shapes(folder: Path, raw: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensor shapes of SAELens' class for a config, without allocating memory."""
    sae_lens = library()
    try:
        with torch.device("meta"):
            module = sae_lens.SAE.from_dict({**raw, "device": "meta"})
    except Exception as error:  # as above: sizes that do not divide, unknown settings
        raise SaevalError(f"{folder}: SAELens cannot build this SAE ({first_line(error)}); check its config") from None
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def library() -> Any:
    """Return the module `sae_lens`; `SaevalError` if it is not installed."""
    try:
        import sae_lens  # late: an optional extra, and slow to import
    except ImportError:
        raise SaevalError('saelens: this SAE needs the library SAELens: pip install "saeval[saelens]"') from None
    return sae_lens


def first_line(error: BaseException) -> str:
    """Return a library's error, shortened for a message."""
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the warning of temporal SAEs that `decode` gets only the novel features: here it gets all of them."""
    logger = logging.getLogger("sae_lens")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
