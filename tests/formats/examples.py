"""One checkpoint of every format and architecture that saeval reads, written as its own library writes it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import apollo_files as apollo
import checkpoints
import dictionary_learning_files as dictionary_learning
import gemma_scope_files as gemma_scope
import layer_files
import llama_scope_files as llama_scope
import llamascopium_files as llamascopium
import mapping_files as mapping
import openai_files as openai
import saelens_files as saelens
import sparsify_files as sparsify
import transcoder_files as transcoders
from checkpoints import Formula

FORMULA = "its source's formula, written out"


@dataclass(frozen=True)
class Example:
    """A checkpoint with the answer that it should give."""

    format: str
    architecture: str
    against: str
    """What the expected numbers come from."""
    write: Callable[[Path], Mapping[str, Any]]
    """Writes the files into a folder; returns the reference."""
    formula: Callable[[], Formula]
    x: Tensor
    hook_name: str | None
    """The hook that the files themselves tell."""

    @property
    def label(self) -> str:
        return f"{self.format}-{self.architecture}"


def _saelens() -> Iterator[Example]:
    import sae_lens

    for kind in saelens.KINDS:
        for normalization in ("none", "layer_norm", "constant_norm_rescale"):
            config = {"normalize_activations": normalization}

            def write(folder: Path, kind: str = kind, config: Mapping[str, Any] = config) -> Mapping[str, Any]:
                return {"path": str(saelens.saved(saelens.random_sae(kind, **config), folder))}

            def formula(kind: str = kind, config: Mapping[str, Any] = config) -> Formula:
                theirs = saelens.random_sae(kind, **config)
                return Formula(theirs.encode, theirs.decode)

            name = kind if normalization == "none" else f"{kind}, {normalization}"
            version = f"sae-lens {sae_lens.__version__}"
            yield Example("saelens", name, version, write, formula, saelens.activations(), saelens.HOOK)


def _dictionary_learning() -> Iterator[Example]:
    for name in dictionary_learning.FLOATS:
        yield Example(
            "dictionary_learning", name, FORMULA,
            lambda folder, name=name: {"path": str(dictionary_learning.saved(folder, name))},
            lambda name=name: dictionary_learning.formula_of(name, dictionary_learning.state_of(name)),
            checkpoints.activations(), "blocks.1.hook_resid_post",
        )  # fmt: skip


def _openai() -> Iterator[Example]:
    for kind in ("TopK", "ReLU"):

        def write(folder: Path, kind: str = kind) -> Mapping[str, Any]:
            torch.save(openai.state_of(kind), folder / "6.pt")
            return {"path": str(folder / "6.pt")}

        yield Example(
            "openai", kind, FORMULA, write, lambda kind=kind: openai.formula_of(openai.state_of(kind)),
            checkpoints.activations(), None,
        )  # fmt: skip


def _apollo() -> Iterator[Example]:
    def native(folder: Path) -> Mapping[str, Any]:
        torch.save(apollo.state_of(apollo.HOOKS[0]), folder / "samples_400.pt")
        (folder / "final_config.yaml").write_text(yaml.safe_dump(apollo.CONFIG))
        return {"path": str(folder / "samples_400.pt")}

    def published(folder: Path) -> Mapping[str, Any]:
        torch.save(apollo.published(), folder / "local_layer_1.pt")
        return {"path": str(folder / "local_layer_1.pt")}

    x = checkpoints.activations()
    yield Example("apollo", "of a run", FORMULA, native, apollo.formula_of, x, apollo.HOOKS[0])
    yield Example("apollo", "published", FORMULA, published, apollo.formula_of, x, None)


def _transcoders() -> Iterator[Example]:
    import sae_lens

    for kind in transcoders.KINDS:

        def write(folder: Path, kind: str = kind) -> Mapping[str, Any]:
            transcoders.random_transcoder(kind).save_model(folder)
            return {"path": str(folder)}

        def formula(kind: str = kind) -> Formula:
            theirs = transcoders.random_transcoder(kind)
            # Their decode leaves the skip term out; what forward adds to it is that term.
            return Formula(
                lambda x: (theirs.encode(x), x),
                lambda acts, x: theirs.decode(acts) + theirs(x) - theirs.decode(theirs.encode(x)),
            )

        yield Example(
            "saelens",
            kind,
            f"sae-lens {sae_lens.__version__}",
            write,
            formula,
            saelens.activations(),
            transcoders.WRITES,
        )


def _sparsify() -> Iterator[Example]:
    kinds = {
        "topk": {},
        "topk_skip": {"skip_connection": True},
        "topk_transcoder": {"transcode": True},
        "topk_skip_transcoder": {"transcode": True, "skip_connection": True},
        "groupmax": {"activation": "groupmax", "k": 8},
        "signed_topk": {"signed": True},
    }
    for name, config in kinds.items():

        def write(folder: Path, config: Mapping[str, Any] = config) -> Mapping[str, Any]:
            return {"path": str(sparsify.write(folder / "h.1.mlp", **config))}

        def formula(config: Mapping[str, Any] = config) -> Formula:
            with tempfile.TemporaryDirectory() as place:
                folder = sparsify.write(Path(place), **config)
                if config.get("signed"):
                    return sparsify.signed_formula(folder)
                return sparsify.formula(folder, config.get("activation", "topk"), config.get("transcode", False))

        yield Example("sparsify", name, FORMULA, write, formula, checkpoints.activations(), "h.1.mlp")


def _gemma_scope() -> Iterator[Example]:
    import sae_lens

    def formula() -> Formula:
        config = sae_lens.JumpReLUSAEConfig(d_in=checkpoints.D, d_sae=checkpoints.N, apply_b_dec_to_input=False)
        theirs = sae_lens.JumpReLUSAE(config)
        theirs.load_state_dict({name: torch.from_numpy(array) for name, array in gemma_scope.params().items()})
        return Formula(theirs.encode, theirs.decode)

    def affine() -> Formula:
        plain = formula()
        skip = gemma_scope.random_tensors({"skip": (checkpoints.D, checkpoints.D)}, seed=5)["skip"]
        return Formula(lambda x: (plain.encode(x), x), lambda acts, x: plain.decode(acts) + x @ skip)

    def second(folder: Path, **options: Any) -> Mapping[str, Any]:
        kind = "transcoder_all" if options else "resid_post_all"
        reads, writes = ("pre_feedforward_layernorm.", "post_feedforward_layernorm.") if options else ("", "")
        config = {
            "affine_connection": bool(options),
            "type": "transcoder" if options else "sae",
            "l0": 50,
            "hf_hook_point_in": f"model.layers.3.{reads}output",
            "hf_hook_point_out": f"model.layers.3.{writes}output",
        }
        return {"path": str(gemma_scope.second(folder / kind / "layer_3_width_16k_l0_big", config, **options))}

    version, x = f"sae-lens {sae_lens.__version__}", checkpoints.activations()
    place, hook = gemma_scope.PLACE, "blocks.20.hook_resid_post"
    yield Example(
        "gemma_scope", "jumprelu", version, lambda f: {"path": str(gemma_scope.first(f / place))}, formula, x, hook
    )
    yield Example("gemma_scope", "2: jumprelu", version, second, formula, x, "model.layers.3")
    yield Example(
        "gemma_scope", "2: jumprelu_skip_transcoder", FORMULA, lambda f: second(f, affine=True), affine, x,
        "model.layers.3.post_feedforward_layernorm",
    )  # fmt: skip


def _llama_scope() -> Iterator[Example]:
    def formula() -> Formula:
        with tempfile.TemporaryDirectory() as place:
            return llama_scope.formula(llama_scope.write(Path(place)))

    yield Example(
        "llama_scope", "jumprelu", FORMULA, lambda f: {"path": str(llama_scope.write(f))}, formula,
        checkpoints.activations(), llama_scope.HOOK,
    )  # fmt: skip


def _by_the_library() -> Iterator[Example]:
    """SAEs of SAELens that its own classes compute, and one that it exports in another architecture."""
    import sae_lens

    def row(architecture: str, made: Callable[[], Any], formula: Callable[[Any], Formula]) -> Example:
        return Example(
            "saelens", architecture, f"sae-lens {sae_lens.__version__}",
            lambda folder: {"path": str(saelens.saved(made(), folder))}, lambda: formula(made()), saelens.activations(),
            saelens.HOOK,
        )  # fmt: skip

    def of_temporal(theirs: Any) -> Formula:
        return Formula(theirs.encode_with_predictions, lambda acts, predicted: theirs.decode(acts + predicted))

    yield row("matching_pursuit", saelens.matching_pursuit, lambda theirs: Formula(theirs.encode, theirs.decode))
    yield row("temporal", saelens.temporal, of_temporal)

    def exported(folder: Path) -> Mapping[str, Any]:
        saelens.matryoshka().save_inference_model(folder)
        return {"path": str(folder)}

    def of_matryoshka() -> Formula:
        with tempfile.TemporaryDirectory() as place:
            theirs = sae_lens.SAE.load_from_disk(exported(Path(place))["path"])
        return Formula(theirs.encode, theirs.decode)

    version = f"sae-lens {sae_lens.__version__}"
    name = "matryoshka_batchtopk, exported"
    yield Example("saelens", name, version, exported, of_matryoshka, saelens.activations(), saelens.HOOK)


def _layers() -> Iterator[Example]:
    x = checkpoints.activations()
    yield Example(
        "qwen_scope", "topk", FORMULA, lambda f: {"path": str(layer_files.qwen(f / layer_files.REPOSITORY))},
        layer_files.qwen_formula, x, "blocks.3.hook_resid_post",
    )  # fmt: skip
    for kind in layer_files.KINDS:
        yield Example(
            "circuit_tracer", kind, FORMULA, lambda f, kind=kind: {"path": str(layer_files.traced(f, kind=kind))},
            lambda kind=kind: layer_files.traced_formula(kind), x, layer_files.WRITES,
        )  # fmt: skip


def _llamascopium() -> Iterator[Example]:
    kinds = {
        "standard": {},
        "jumprelu": {"act_fn": "jumprelu"},
        "topk": {"act_fn": "topk", "norm_activation": "inference"},
        "jumprelu_transcoder": {"act_fn": "jumprelu", "hook_point_in": llamascopium.READS},
    }
    for name, changes in kinds.items():
        yield Example(
            "llamascopium", name, FORMULA, lambda f, changes=changes: {"path": str(llamascopium.write(f, **changes))},
            lambda changes=changes: llamascopium.formula(**changes), checkpoints.activations(), llamascopium.HOOK,
        )  # fmt: skip


def _mapping() -> Iterator[Example]:
    def entry(folder: Path) -> Mapping[str, Any]:
        path = mapping.write(folder / "my.safetensors", mapping.linear(mapping.canonical()))
        return {"path": path, "tensors": mapping.TENSORS, "activation": {"topk": checkpoints.K}}

    yield Example(
        "mapping", "topk", "the formula, written out", entry, lambda: mapping.formula(mapping.plain()),
        checkpoints.activations(), None,
    )  # fmt: skip


EXAMPLES = [
    *_saelens(), *_by_the_library(), *_transcoders(), *_dictionary_learning(), *_sparsify(), *_gemma_scope(),
    *_llama_scope(), *_llamascopium(), *_layers(), *_openai(), *_apollo(), *_mapping(),
]  # fmt: skip
