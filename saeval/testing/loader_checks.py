"""`check_loader`: tests that a checkpoint format reads its files truly, refuses damaged ones and executes nothing."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from saeval.base.errors import SaevalError, said
from saeval.interfaces.documentation import description
from saeval.interfaces.sae import SAEInfo, SAELoader
from saeval.interfaces.substitute import Substitute
from saeval.testing.substitute_checks import Trial, a_few_tokens

T = TypeVar("T")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_NO_KEY = "no_such_key"
_DAMAGE = (
    "a damaged file is a SaevalError: one sentence with the path, what was found, what was expected, and the remedy"
)


def check_loader(
    loader: type[SAELoader], reference: Mapping[str, Any], *,
    same_as: Callable[[Tensor], Tensor] | None = None, tolerance: float = 1e-4,
) -> SAEInfo:  # fmt: skip
    """Test that a format reads a checkpoint truly, refuses a damaged one, and executes nothing that it holds.

    `reference` is an entry of a suite's `saes:` without `use` and `name`. If its `path` is a file or a folder, the
    folder
    that it is in is copied, and the copy is changed, cut short, overwritten and removed. Checks the class, `info`
    and `load`, that both refuse unknown keys
    and damaged files in one sentence, that `sha256` follows the contents, and that `encode` and `decode` treat each
    token by itself, keep no state, and agree with `weights`. `same_as` returns the reconstruction `[..., d_out]` of
    activations `[..., d_in]`, computed without the loader; the results may differ by `tolerance` (relative).

    Returns the checkpoint's `SAEInfo`. Raises `AssertionError` with what was violated, the smallest example and the
    remedy.
    """
    return _Check(loader, reference).run(same_as, tolerance)


class _Executed:
    """An object that, if it is unpickled, leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


class _Check:
    def __init__(self, loader: type[SAELoader], reference: Mapping[str, Any]) -> None:
        self.loader, self.reference = loader, reference
        self.what = f"SAE format '{getattr(loader, 'name', loader.__name__)}'"

    def run(self, same_as: Callable[[Tensor], Tensor] | None, tolerance: float) -> SAEInfo:
        self._check_class()
        self.reference = self._expanded()
        info = self._info(self.reference)
        self._check_info(info)
        self._check_keys()
        self._check_hook()
        for dtype in (torch.float32, torch.float64):
            sae = self._called("load", partial(self.loader().load, self.reference, "cpu", dtype))
            self._check_loaded(sae, info, dtype)
        d_out = info.d_out or info.d_in
        Trial(sae, self.what, info.d_in, d_out).check()
        if same_as is not None:
            self._check_numbers(sae, same_as, info.d_in, tolerance)
        path = Path(str(self.reference.get("path", "")))
        if "path" in self.reference and path.exists():
            with tempfile.TemporaryDirectory() as folder:
                self._check_files(path, Path(folder), info)
        return info

    def _called(self, method: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:  # of somebody else's class
            raise AssertionError(f"{self.what}: {method} raised {said(error)} for a sound entry") from error

    def _check_hook(self) -> None:
        """In a suite, `hook_name` stays with saeval, and the loader sees the entry without it."""
        without = {key: value for key, value in self.reference.items() if key != "hook_name"}
        try:
            self.loader().info(without)
        except Exception as error:  # of somebody else's class
            raise AssertionError(
                f"{self.what}: info raised {said(error)} without 'hook_name', which a suite's entry keeps for itself; "
                f"make it optional, and return None as the hook_name of SAEInfo"
            ) from error

    def _check_class(self) -> None:
        name = getattr(self.loader, "name", None)
        assert isinstance(name, str) and NAME.fullmatch(name), (
            f"{self.loader.__name__}.name is {name!r}; it is written in suites: lower case, of letters, digits, _ and -"
        )
        missing = getattr(self.loader, "__abstractmethods__", ())
        assert not missing, f"{self.what} does not implement {', '.join(sorted(missing))}"
        assert description(self.loader), f"{self.what} has no docstring; `saeval ls formats` prints its first line"
        assert self.loader.entry is not None, (
            f"{self.what} has no 'entry': set it to the pydantic model of an entry's keys, which `saeval show "
            f"{name}` lists"
        )

    def _expanded(self) -> Mapping[str, Any]:
        references = self._called("expand", lambda: self.loader().expand(self.reference))
        assert isinstance(references, Mapping) and references, (
            f"{self.what}: expand returned {references!r}; return one reference per SAE by name, as in "
            "{'': reference}, and raise SaevalError if nothing matches"
        )
        return next(iter(references.values()))

    def _info(self, reference: Mapping[str, Any]) -> SAEInfo:
        info = self._called("info", lambda: self.loader().info(reference))
        assert isinstance(info, SAEInfo), f"{self.what}: info returned a {type(info).__name__}, no SAEInfo"
        return info

    def _check_info(self, info: SAEInfo) -> None:
        for field in ("d_in", "d_sae"):
            value = getattr(info, field)
            assert type(value) is int and value > 0, (
                f"{self.what}: info gives {field}={value!r}; expected an int above 0"
            )
        for field, optional in (("sha256", False), ("architecture", False), ("hook_name", True), ("input_hook", True)):
            value = getattr(info, field)
            sound = isinstance(value, str) or (optional and value is None)
            assert sound, f"{self.what}: info gives {field}={value!r}; expected text{' or None' if optional else ''}"
        assert info.sha256, f"{self.what}: info gives no sha256, by which results are stored; use sha256_file(path)"
        try:
            json.dumps(dict(info.facts), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{self.what}: facts must be plain data for JSON, but {error}: {info.facts}") from None
        again = self._info(self.reference)
        assert again == info, f"{self.what}: info returned {again} the second time, {info} the first"

    def _check_keys(self) -> None:
        reference = {**self.reference, _NO_KEY: 1}
        for method, call in self._methods(reference):
            error = self._refusal(call, f"the unknown key '{_NO_KEY}'", method, (
                "check the entry with validated_as(Entry, reference, ...), and the model with extra='forbid'"
            ))  # fmt: skip
            assert _NO_KEY in str(error), f"{self.what}: {method} refuses the unknown key '{_NO_KEY}' without its name"

    def _methods(self, reference: Mapping[str, Any]) -> list[tuple[str, Callable[[], Any]]]:
        return [
            ("info", lambda: self.loader().info(reference)),
            ("load", lambda: self.loader().load(reference, "cpu", torch.float32)),
        ]

    def _refusal(self, call: Callable[[], Any], given: str, method: str, remedy: str) -> SaevalError:
        try:
            call()
        except SaevalError as error:
            lines = len(str(error).splitlines())
            assert lines == 1, f"{self.what}: {method} refuses {given} in {lines} lines, not one sentence:\n{error}"
            return error
        except Exception as error:  # of somebody else's class
            raise AssertionError(f"{self.what}: {method} raised {said(error)} for {given}; {remedy}") from error
        raise AssertionError(f"{self.what}: {method} accepts {given}; {remedy}")

    def _check_loaded(self, sae: Substitute, info: SAEInfo, dtype: torch.dtype) -> None:
        assert isinstance(sae, Substitute), f"{self.what}: load returned a {type(sae).__name__}, no Substitute"
        for field in ("d_in", "d_sae"):
            now, before = getattr(sae, field, None), getattr(info, field)
            assert now == before, f"{self.what}: {field} is {now} once loaded, {before} in info"
        if info.hook_name is not None:
            now = getattr(sae, "hook_name", None)
            assert now == info.hook_name, f"{self.what}: hook_name is {now!r} once loaded, {info.hook_name!r} in info"
        d_out = info.d_out or info.d_in
        shapes = {
            "W_enc": (info.d_in, info.d_sae),
            "b_enc": (info.d_sae,),
            "W_dec": (info.d_sae, d_out),
            "b_dec": (d_out,),
        }
        for name, weight in sae.weights.items():
            assert name in shapes, f"{self.what}: weights has '{name}'; its names are {', '.join(shapes)}"
            shape = tuple(weight.shape)
            transposed = "; transpose it" if shape == shapes[name][::-1] and len(shape) == 2 else ""
            assert shape == shapes[name], f"{self.what}: {name} is {list(shape)}, not {list(shapes[name])}{transposed}"
            assert weight.dtype == dtype, (
                f"{self.what}: load(reference, device, {dtype}) gives {name} in {weight.dtype}; write "
                f"tensor.to(device, dtype)"
            )

    def _check_numbers(self, sae: Substitute, same_as: Callable[[Tensor], Tensor], d_in: int, tolerance: float) -> None:
        x = a_few_tokens(d_in)
        expected = same_as(x).to(torch.float64)
        now = sae.decode(sae.encode(x), torch.zeros_like(expected)).to(torch.float64)
        assert now.shape == expected.shape, f"{self.what}: x̂ is {list(now.shape)}, {list(expected.shape)} by same_as"
        close = torch.isclose(now, expected, rtol=tolerance, atol=tolerance)
        if not close.all():
            row, position, unit = (~close).nonzero()[0].tolist()
            place = (row, position, unit)
            raise AssertionError(
                f"{self.what}: x̂ is {now[place].item():.6g} at row {row}, position {position}, unit {unit}, but "
                f"{expected[place].item():.6g} by same_as, and differs in {int((~close).sum())} of {close.numel()} "
                f"numbers; look for a bias, a scale, a transpose or an activation that is read otherwise"
            )

    def _check_files(self, path: Path, folder: Path, info: SAEInfo) -> None:
        """Check what `info` and `load` do with copies of the files."""

        def copied(name: str) -> tuple[dict[str, Any], Path, Path]:
            """Return the reference of a copy, its path and its largest file."""
            parent = folder / name / path.resolve().parent.parent.name / path.resolve().parent.name
            shutil.copytree(path.resolve().parent, parent)
            copy = parent / path.name
            files = [file for file in (copy.rglob("*") if copy.is_dir() else [copy]) if file.is_file()]
            return {**self.reference, "path": str(copy)}, copy, max(files, key=lambda file: file.stat().st_size)

        reference, _, _ = copied("same")
        moved = self._info(reference)
        assert moved.sha256 == info.sha256, (
            f"{self.what}: sha256 is {moved.sha256} for a copy of the files, {info.sha256} for the files: it depends "
            "on "
            f"the path or the time; hash the contents, as sha256_file(path) does"
        )
        reference, _, file = copied("changed")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        try:
            changed = self.loader().info(reference).sha256
        except SaevalError:
            changed = ""
        except Exception as error:  # of somebody else's class
            raise AssertionError(
                f"{self.what}: info raised {said(error)} for a changed {file.name}; {_DAMAGE}"
            ) from error
        assert changed != info.sha256, (
            f"{self.what}: sha256 is the same after byte {len(content) // 2} of {file.name} changed, so stored results "
            f"of other weights would be used; hash the whole file, as sha256_file(path) does"
        )
        whole = file.read_bytes()
        for name, bytes_ in (
            ("cut short", whole[: len(whole) // 2]),
            ("overwritten", b"no checkpoint"),
            ("empty", b""),
        ):
            reference, _, file = copied(name)
            file.write_bytes(bytes_)
            self._check_refused(reference, f"a file that is {name}", file.name)
        reference, copy, file = copied("missing")
        file.unlink() if path.is_file() else shutil.rmtree(copy)
        self._check_refused(reference, "a path that does not exist", copy.name)
        for number, payload in enumerate(_payloads(whole, mark := folder / "executed")):
            reference, _, file = copied(f"payload-{number}")
            file.write_bytes(payload)
            for _, call in self._methods(reference):
                try:
                    call()
                    refused = "it is accepted"
                except Exception as error:  # refused, which other checks look at
                    refused = said(error)
                assert not mark.exists(), (
                    f"{self.what}: reading {file.name} executes code that it holds ({refused}); load with "
                    f"np.load(..., allow_pickle=False), torch.load(..., weights_only=True) or load_tensors_only(path)"
                )

    def _check_refused(self, reference: Mapping[str, Any], given: str, name: str) -> None:
        """Check that `info`, or else `load`, refuses the files with one sentence that names the path."""
        (_, info), (_, load) = self._methods(reference)

        def both() -> None:
            info()
            load()

        error = self._refusal(both, given, "info, then load,", _DAMAGE)
        assert name in str(error), f"{self.what}: the message about {given} does not name {name}: {error}"


def _payloads(content: bytes, mark: Path) -> list[bytes]:
    """Return files that run code if a reader unpickles them: plain, as torch saves, and in an archive of numpy's."""
    payload = pickle.dumps(_Executed(mark), protocol=2)  # as torch writes it
    payloads = [payload]
    saved = io.BytesIO()
    torch.save({"W_dec": _Executed(mark)}, saved)
    payloads.append(saved.getvalue())
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if names:
            saved = io.BytesIO()
            object_array = np.empty(1, dtype=object)
            object_array[0] = _Executed(mark)
            np.savez(saved, **dict.fromkeys(names, object_array))  # type: ignore[arg-type]
            payloads.append(saved.getvalue())
    return payloads
