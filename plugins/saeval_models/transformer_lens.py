"""The `transformer_lens` adapter: checkpoints of transformers in a TransformerBridge, with its hook points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from saeval.plugin import Model, ModelAdapter, ModelSpec, SaevalError, unwrap_module
from saeval_models.checkpoint import Reference, longest_context, parsed
from saeval_models.families import BOUNDARIES, FINAL_NORMALIZED, SUFFIXES, Family
from saeval_models.huggingface import PretrainedSpec
from saeval_models.library_errors import library_errors
from saeval_models.live import LiveSpec, inherits


class BridgeSpec(PretrainedSpec):
    """A checkpoint that transformers loads and a TransformerBridge wraps, without folded or centred weights."""

    adapter: ClassVar[str] = "transformer_lens"

    def __init__(self, reference: Reference) -> None:
        # The bridge computes attention itself, as `eager` does.
        super().__init__(replace(reference, attn_implementation=reference.attn_implementation or "eager"))
        if self.checkpoint.adapter is not None:
            folder = self.checkpoint.adapter.folder
            raise SaevalError(f"{folder} holds an adapter, which transformer_lens does not support; use 'huggingface'")
        if self.kind == "reward":
            raise SaevalError(f"'{self.name}' is a reward model, which transformer_lens cannot wrap; use 'huggingface'")

    def _hooks(self) -> dict[str, int]:
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES  # late: slow

        architecture = type(self._empty.module).__name__
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise SaevalError(f"transformer_lens cannot wrap '{self.name}', a {architecture}; use 'huggingface'")
        # Computed without a bridge, because a bridge splits fused weights, which have no values on the meta device.
        after = FINAL_NORMALIZED, self.canonical("ln_final.hook_out")
        return {name: width for name, width in super()._hooks().items() if name.startswith("blocks.") or name in after}

    def load(self, device: str) -> Model:
        from transformer_lens.model_bridge.sources import build_bridge_from_module  # late: slow to import

        from saeval_models.lens import bridged  # late: it imports transformer_lens
        from saeval_models.pretrained import hooked

        module = self._pretrained(device)
        expected = hooked(module, self._family).short_activations()
        with library_errors(f"transformer_lens cannot wrap '{self.name}'", "use 'huggingface'"):
            bridge = build_bridge_from_module(module, type(module).__name__, hf_config=module.config)
            module.eval()  # the bridge's own components start in training mode
            model = bridged(bridge, self._family, expected)
        model.check()
        return model


class TransformerLens(ModelAdapter):
    """Causal models in a TransformerBridge, or a live TransformerBridge or HookedTransformer.

    `model: {use: transformer_lens, path: folder}` or `{use: transformer_lens, name: gpt2}`, with the keys of
    `huggingface`. Weights are neither folded nor centred, unless `center_writing_weights: true`.
    """

    name, entry = "transformer_lens", Reference

    def spec(self, reference: Mapping[str, Any]) -> ModelSpec:
        return BridgeSpec(parsed(reference, self.name))

    def accepts(self, live: object) -> bool:
        module = unwrap_module(live)
        return any(inherits(module, "transformer_lens", name) for name in ("TransformerBridge", "HookedTransformer"))

    def wrap(self, live: object, tokenizer: Any = None, name: str = "model") -> ModelSpec:
        from saeval_models.lens import HookedTransformerModel, bridged  # late: torch and transformers
        from saeval_models.pretrained import family_of

        owner: Any = unwrap_module(live)
        tokenizer = tokenizer if tokenizer is not None else getattr(owner, "tokenizer", None)
        if inherits(owner, "transformer_lens", "HookedTransformer"):
            family = Family("", "blocks", {**dict.fromkeys(SUFFIXES, ()), **BOUNDARIES})
            old, cfg = HookedTransformerModel(owner), owner.cfg
            return LiveSpec(self.name, owner, old, family, cfg.to_dict(), cfg.n_ctx, tokenizer, name)
        config, family = owner.original_model.config, family_of(owner.original_model)
        model, context = bridged(owner, family), longest_context(config)
        return LiveSpec(self.name, owner, model, family, config.to_dict(), context, tokenizer, name)
