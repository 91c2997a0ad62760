"""`check_loader` on formats that are wrong, each in its own way, and on sound ones of every kind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ConfigDict

from saeval.plugin import Encoding, SAEInfo, SAELoader, SaevalError, Substitute, digest_of, sha256_file, validated_as
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing import TinySAE, check_loader

HOOK = "blocks.1.hook_resid_pre"
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: Path


class Plain(Substitute):
    weights = None  # set below

    def __init__(self, weights):
        self.hook_name, self.weights = HOOK, weights
        self.d_in, self.d_sae = weights["W_enc"].shape

    def encode(self, activations):
        x = activations.to(self.weights["W_enc"].dtype)
        return Encoding(torch.relu(x @ self.weights["W_enc"] + self.weights["b_enc"]))

    def decode(self, encoding, activations):
        return (encoding.feature_acts @ self.weights["W_dec"] + self.weights["b_dec"]).to(activations.dtype)


class Planted(SAELoader):
    """ReLU SAEs in `.npz` files, which each planted format spoils."""

    name, entry, sae = "planted", Entry, Plain

    def path(self, reference):
        return validated_as(Entry, reference, "SAE format 'planted'").path

    def info(self, reference):
        path = self.path(reference)
        arrays = self.read(path)
        return SAEInfo(HOOK, len(arrays["b_dec"]), len(arrays["b_enc"]), sha256_file(path))

    def load(self, reference, device, dtype):
        return self.sae(
            {name: torch.from_numpy(x).to(device, dtype) for name, x in self.read(self.path(reference)).items()}
        )

    def read(self, path):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in NAMES}
        except Exception as error:
            raise SaevalError(f"{path}: cannot be read as .npz ({type(error).__name__})") from None


def planted(*bases, **members):
    """A format that differs from the sound one in these members."""
    return type("Made", (*bases, Planted), {"__doc__": "A format.", **members})


def undocumented():
    own = {name: member for name, member in vars(Planted).items() if not name.startswith("_")}
    return type("Made", (SAELoader,), own)


def spoiled(**members):
    """A format whose SAE differs from the sound one in these members."""
    return planted(sae=type("Spoiled", (Plain,), members))


def changed_info(**changes):
    class Changed(Planted):
        """A format."""

        def info(self, reference):
            return SAEInfo(**{**vars(super().info(reference)), **changes})

    return Changed


def accepts_anything(self, reference):
    return Path(reference["path"])


def unpickling(self, path):
    with path.open("rb") as file, np.load(file, allow_pickle=True) as archive:
        return {name: archive[name] for name in NAMES}


def bare(self, path):
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in NAMES}


def chatty(self, path):
    try:
        return bare(self, path)
    except Exception as error:
        raise SaevalError(f"{path}\ncannot be read: {type(error).__name__}") from None


def nameless(self, path):
    try:
        return bare(self, path)
    except Exception:
        raise SaevalError("the file is damaged") from None


def with_unpickled_errors(self, path):
    try:
        return unpickling(self, path)
    except Exception as error:
        raise SaevalError(f"{path}: {type(error).__name__}") from None


def float32(self, reference, device, dtype):
    return Planted.load(self, reference, device, torch.float32)


def transposed(self, weights):
    Plain.__init__(self, {**weights, "W_dec": weights["W_dec"].T.contiguous()})


def reordered(self):
    return {**self.__dict__["kept"], "W_dec": self.__dict__["kept"]["W_dec"].flip(0)}


class Reordered(Plain):
    weights = property(reordered)

    def __init__(self, weights):
        self.kept, self.hook_name = weights, HOOK
        self.d_in, self.d_sae = weights["W_enc"].shape

    def encode(self, activations):
        return Encoding(torch.relu(activations @ self.kept["W_enc"] + self.kept["b_enc"]))

    def decode(self, encoding, activations):
        return encoding.feature_acts @ self.kept["W_dec"] + self.kept["b_dec"]


def in_place(self, activations):
    activations -= self.weights["b_dec"] + 1
    return Plain.encode(self, activations)


def by_batch(self, activations):
    return Plain.encode(self, activations / activations.norm(dim=-1).mean())


def by_row(self, activations):
    return Plain.encode(self, activations - activations.cumsum(1) / 4)


def running(self, activations):
    self.count = getattr(self, "count", 0) + 1
    return Plain.encode(self, activations * self.count)


def dropout(self, activations):
    return Plain.encode(self, torch.nn.functional.dropout(activations, training=True))


def bare_tensor(self, activations):
    return Plain.encode(self, activations).feature_acts


def narrow(self, activations):
    return Encoding(Plain.encode(self, activations).feature_acts[..., 1:])


def no_cast(self, encoding, activations):
    return Plain.decode(self, encoding, activations).half()


def not_finite(self, encoding, activations):
    return Plain.decode(self, encoding, activations) / 0


def without_bias(self, encoding, activations):
    return encoding.feature_acts @ self.weights["W_dec"]


def needs_hook(self, reference):
    if "hook_name" not in reference:
        raise SaevalError("SAE format 'planted' needs the parameter 'hook_name'")
    return Planted.path(self, {key: value for key, value in reference.items() if key != "hook_name"})


WRONG = {
    "no docstring": (undocumented(), "has no docstring"),
    "name in capitals": (planted(name="My Format"), "name is 'My Format'; it is written in suites"),
    "no entry": (planted(entry=None), "has no 'entry': set it to the pydantic model"),
    "unknown keys": (planted(path=accepts_anything), "info accepts the unknown key 'no_such_key'; check the entry with validated_as"),
    "widths swapped": (changed_info(d_in=32, d_sae=16), "d_in is 16 once loaded, 32 in info"),
    "another hook": (changed_info(hook_name="blocks.0.hook_resid_pre"), "hook_name is 'blocks.1.hook_resid_pre' once loaded"),
    "no hash": (changed_info(sha256=""), "info gives no sha256, by which results are stored"),
    "hash of nothing": (planted(info=lambda self, reference: self.path(reference) and SAEInfo(HOOK, 16, 32, "1")), r"sha256 is the same after byte \d+ of sae.npz changed"),
    "facts of tensors": (changed_info(facts={"k": torch.ones(1)}), "facts must be plain data for JSON"),
    "float32 always": (planted(load=float32), r"gives W_enc in torch.float32; write tensor.to\(device, dtype\)"),
    "decoder transposed": (spoiled(__init__=transposed), r"W_dec is \[16, 32\], not \[32, 16\]; transpose it"),
    "other weights": (planted(sae=Reordered), r"feature 0 alone moves x̂ in a direction whose cosine with weights\['W_dec'\]\[0\]"),
    "in place": (spoiled(encode=in_place), "changed its argument at row 0, position 0, unit 0|-.*work on a copy"),
    "scaled by the batch": (spoiled(encode=by_batch), "feature_acts is .* with the row alone: .*other rows of its batch"),
    "earlier tokens": (spoiled(encode=by_row), "with the token alone in its row: .*set reads_earlier = True"),
    "a counter": (spoiled(encode=running), "with the same call again: it keeps state between calls"),
    "dropout": (spoiled(encode=dropout), "with the same call again: .*draws random numbers without a key"),
    "a bare tensor": (spoiled(encode=bare_tensor), r"encode returned a Tensor; return Encoding\(feature_acts\)"),
    "a feature less": (spoiled(encode=narrow), r"encode returned the shape \[3, 4, 31\] .* expected \[3, 4, 32\]"),
    "another dtype": (spoiled(decode=no_cast), r"decode returned float16 .* end with x_hat.to\(activations.dtype\)"),
    "infinite": (spoiled(decode=not_finite), "decode returned -?inf at row 0, position 0, unit 0"),
    "no bias": (spoiled(decode=without_bias), r"x̂ is .* at row 0, position 0, unit 0, but .* by same_as.*look for a bias"),
    "any error": (planted(read=bare), "raised BadZipFile: .* for a changed sae.npz; a damaged file is a SaevalError"),
    "two lines": (planted(read=chatty), "refuses a file that is cut short in 2 lines, not one sentence"),
    "no path": (planted(read=nameless), "the message about a file that is cut short does not name sae.npz"),
    "unpickles": (planted(read=with_unpickled_errors), "reading sae.npz executes code that it holds"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sae():
    sae = TinySAE()
    sae.b_dec = torch.linspace(-1, 1, 16)
    return sae


@pytest.fixture(scope="module")
def reference(tmp_path_factory, sae):
    path = tmp_path_factory.mktemp("own") / "sae.npz"
    np.savez(path, **{name: getattr(sae, name).numpy() for name in NAMES})
    return {"path": str(path)}


def same_as(sae):
    """The formula, written out."""
    weights = {name: getattr(sae, name).double() for name in NAMES}
    return lambda x: torch.relu(x @ weights["W_enc"] + weights["b_enc"]) @ weights["W_dec"] + weights["b_dec"]


@pytest.mark.parametrize(("loader", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_format_is_caught_with_its_cause(loader, said, reference, sae):
    with pytest.raises(AssertionError, match=f"(?s){said}"):
        check_loader(loader, reference, same_as=same_as(sae))


def test_a_format_that_needs_the_hook_of_an_entry_is_caught(reference):
    said = "without 'hook_name', which a suite's entry keeps for itself; make it optional"
    with pytest.raises(AssertionError, match=said):
        check_loader(planted(path=needs_hook), {**reference, "hook_name": HOOK})


def test_the_table_is_long_enough():
    assert len(WRONG) >= 15


def test_a_sound_format_passes(reference, sae):
    info = check_loader(Planted, reference, same_as=same_as(sae))
    assert (info.hook_name, info.d_in, info.d_sae) == (HOOK, 16, 32)


def test_a_hash_of_the_path_is_caught(reference):
    class ByPath(Planted):
        """A format."""

        def info(self, reference):
            return SAEInfo(HOOK, 16, 32, digest_of([str(self.path(reference)), super().info(reference).sha256]))

    with pytest.raises(AssertionError, match=re.escape("it depends on the path or the time; hash the contents")):
        check_loader(ByPath, reference)


def test_a_format_that_ships_passes(saelens_folder):
    check_loader(Registry(Plugins([])).loaders["saelens"], {"path": str(saelens_folder(d_in=16, d_sae=32))})
