"""The modules at TransformerLens' hooks in the blocks of many architectures, written down by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from places import PLACES, SUFFIXES, suffixes


@dataclass(frozen=True)
class Layout:
    """Paths in a block; empty if the block has no such place."""

    attn: str = "self_attn"
    """The module whose output the block adds to the residual stream."""
    z: str = "self_attn.o_proj"
    """The projection whose input is `attn.hook_z`."""
    mlp: str = "mlp"
    post: str = "mlp.down_proj"
    """The projection whose input is `mlp.hook_post`."""
    norm: str = "post_attention_layernorm"
    """The norm that the MLP alone reads."""
    enters: str = "mlp"
    """The module whose input is the MLP's."""
    form: str = "sequential"
    """`sequential` blocks have a residual stream between attention and MLP, `parallel` ones have none; in `normed` ones,
    norms change the stream itself; `several` means that the blocks pass on several streams at once."""
    block: int = 2
    """A block with attention."""
    plus_one: bool = False
    """True if norms store the gain minus 1."""
    gain: bool = True
    """True if the norm has a gain."""
    scale: float = 1.0
    """The factor between a branch and the residual stream."""
    shares: bool = False
    """True if later blocks read keys and values of earlier ones."""
    left: bool = True
    """True if padding on the left leaves results as they are."""
    bridge: bool | tuple[str, ...] = True
    """True if a TransformerBridge has the same activations and resumes; or the sites at which it has not."""

    def suffixes(self) -> list[str]:
        """The sites of the block."""
        places = {
            "hook_resid_pre": self.form != "several",
            "hook_mlp_in": self.norm,
            "ln2.hook_normalized": self.norm and self.gain,
            "hook_resid_mid": self.attn and self.form == "sequential" and not self.shares,
            "hook_resid_post": self.form != "several",
            "hook_attn_out": self.attn,
            "hook_mlp_out": self.mlp,
            "attn.hook_z": self.z,
            "mlp.hook_in": self.enters,
            "mlp.hook_post": self.post,
        }
        return [suffix for suffix, there in places.items() if there]

    def place(self, suffix: str) -> tuple[str, str]:
        """The module and the end of a site."""
        return {
            "hook_resid_pre": ("", "in"), "hook_resid_post": ("", "out"), "hook_attn_out": (self.attn, "out"),
            "hook_mlp_out": (self.mlp, "out"), "attn.hook_z": (self.z, "in"), "mlp.hook_post": (self.post, "in"),
            "hook_mlp_in": (self.norm, "in"), "ln2.hook_normalized": (self.norm, "out"), "mlp.hook_in": (self.enters, "in"),
        }[suffix]  # fmt: skip


_LLAMA = Layout()
_EXPERTS = Layout(post="")
_NONE = Layout("", "", "", "", "", "", "none")
_SEVERAL = replace(_NONE, form="several", bridge=False)
_FC = Layout(
    z="self_attn.out_proj", mlp="fc2", post="fc2", norm="final_layer_norm", enters="fc1", bridge=("mlp.hook_in",)
)
_FALCON = Layout("self_attention", "self_attention.dense", post="mlp.dense_4h_to_h", norm="", form="parallel")
_AFTER = Layout("post_attention_layernorm", mlp="post_feedforward_layernorm", norm="")
LAYOUTS = {
    "apertus": replace(_LLAMA, norm="feedforward_layernorm"),
    "bert-decoder": Layout(
        "attention.output.dense", "attention.output.dense", "output.dense", "output.dense", "", "intermediate", "normed",
        bridge=("hook_attn_out", "mlp.hook_in"),
    ),
    "biogpt": replace(_FC, bridge=False),
    "bloom": Layout(
        "self_attention.dense", "self_attention.dense", "mlp.dense_4h_to_h", "mlp.dense_4h_to_h", "post_attention_layernorm"
    ),
    "bloom-normed": Layout(
        "self_attention.dense", "self_attention.dense", "mlp.dense_4h_to_h", "mlp.dense_4h_to_h", "", form="normed"
    ),
    "cohere": replace(_LLAMA, norm="", form="parallel", bridge=False),
    "cohere2": replace(_LLAMA, norm="", form="parallel", bridge=False),
    "ctrl": Layout("multi_head_attention", "multi_head_attention.dense", "ffn", "ffn.2", "layernorm2", "ffn", bridge=False),
    "deepseek_v3": replace(_EXPERTS, bridge=False),
    "diffllama": replace(_LLAMA, bridge=False),
    "falcon": _FALCON,
    "falcon-alibi": replace(_FALCON, norm="post_attention_layernorm", form="sequential", bridge=False),
    "falcon-new": replace(_FALCON, norm="ln_mlp", bridge=False),
    "gemma3_text": replace(_AFTER, norm="pre_feedforward_layernorm", plus_one=True),
    "gemma3n_text": _SEVERAL,
    "gemma4_text": replace(_AFTER, norm="pre_feedforward_layernorm", shares=True),
    "glm4": replace(_LLAMA, attn="post_self_attn_layernorm", mlp="post_mlp_layernorm"),
    "gpt_oss": _EXPERTS,
    "granite": replace(_LLAMA, scale=0.3, bridge=("hook_attn_out", "hook_mlp_out", "hook_resid_mid")),
    "jamba": replace(_EXPERTS, mlp="feed_forward", enters="feed_forward", norm="pre_ff_layernorm", block=1),
    "lfm2": Layout("self_attn", "self_attn.out_proj", "feed_forward", "feed_forward.w2", "ffn_norm", "feed_forward"),
    "llama4_text": replace(_EXPERTS, mlp="feed_forward", enters="feed_forward"),
    "mamba": _NONE,
    "mamba2": _NONE,
    "mixtral": _EXPERTS,
    "modernbert-decoder": Layout("attn", "attn.Wo", "mlp", "mlp.Wo", "mlp_norm"),
    "mpt": Layout("attn", "attn.out_proj", "ffn.down_proj", "ffn.down_proj", "norm_2", "ffn"),
    "nemotron": replace(_LLAMA, plus_one=True),
    "olmo": replace(_LLAMA, gain=False),
    "olmo2": _AFTER,
    "olmo3": _AFTER,
    "olmoe": _EXPERTS,
    "openai-gpt": Layout("attn", "attn.c_proj", "mlp", "mlp.c_proj", "", "mlp", "normed", bridge=False),
    "opt": _FC,
    "opt-350m": replace(_FC, norm="", form="normed"),
    "phi": Layout("self_attn", "self_attn.dense", "mlp", "mlp.fc2", "", form="parallel"),
    "phi3": _LLAMA,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "qwen3_next": replace(_EXPERTS, block=3, plus_one=True, bridge=False),
    "rwkv": Layout(
        "attention", "attention.output", "feed_forward", "", "ln2", "feed_forward", "parallel", left=False, bridge=False
    ),
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "stablelm-parallel": replace(_LLAMA, norm="", form="parallel"),
    "starcoder2": replace(_LLAMA, post="mlp.c_proj"),
    "xglm": _FC,
}  # fmt: skip
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
MARK = "<!-- sites -->\n"


def table() -> str:
    """The table of sites in docs/models.md; `test_named_sites.py` and `test_models_resume.py` prove its rows."""
    known = [(family.replace("-", ":"), _words(suffixes(family), True, True)) for family in PLACES]
    known += [
        (
            n if n in ("openai-gpt", "modernbert-decoder") else n.replace("-", ":"),
            _words(p.suffixes(), p.left, p.bridge),
        )
        for n, p in LAYOUTS.items()
    ]
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, words in sorted(dict(known).items()):
        rows.setdefault(words, []).append(f"`{name}`")
    lines = ["model types | sites | left padding | in a TransformerBridge", "--- | --- | --- | ---"]
    lines += [" | ".join((", ".join(names), *words)) for words, names in sorted(rows.items(), key=lambda r: -len(r[1]))]
    return "".join(f"| {line} |\n" for line in lines)


def _words(there: list[str], left: bool, bridge: bool | tuple[str, ...]) -> tuple[str, ...]:
    lacking = [f"`{suffix}`" for suffix in SUFFIXES if suffix not in there]
    sites = "all" if not lacking else f"all but {', '.join(lacking)}"
    sites = {0: "none", 2: "the residual stream"}.get(len(there), sites)
    at = "no" if bridge is False else "yes" if bridge is True else f"not {', '.join(f'`{site}`' for site in bridge)}"
    return sites, "yes" if left else "no", at


if __name__ == "__main__":  # write the table into the page
    before, _, after = PAGE.read_text().split(MARK)
    PAGE.write_text(f"{before}{MARK}{table()}{MARK}{after}")
