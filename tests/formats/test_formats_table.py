"""Every format against its own library: the table in docs/formats.md, made anew here and compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from examples import EXAMPLES, Example
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
TOLERANCE = 1e-5
STALE = "docs/formats.md is stale: run `python tests/formats/test_formats_table.py`"
HEADER = "| format | architecture | compared with | loads | encode equal | decode equal | hook known |\n|---|---|---|---|---|---|---|\n"
REGISTRY = Registry(Plugins())


def measured(example: Example, folder: Path) -> tuple[bool, bool, bool]:
    """Whether encode and decode equal the library's to 1e-5 (of values of size 1), and whether the hook is told."""
    reference = example.write(folder)
    loader = REGISTRY.loaders[example.format]()
    info, sae = loader.info(reference), loader.load(reference, "cpu", torch.float32)
    formula = example.formula()
    with torch.no_grad():
        encoded = formula.encode(example.x)
        acts, *context = encoded if isinstance(encoded, tuple) else (encoded,)
        expected = formula.decode(acts, *context)
        encoding = sae.encode(example.x)
        found = sae.decode(encoding, example.x)
    assert (info.d_in, info.d_sae) == (example.x.shape[-1], acts.shape[-1])
    assert 0 < (acts != 0).float().mean() < 1
    return _equal(encoding.feature_acts, acts), _equal(found, expected), info.hook_name is not None


def _equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def row(example: Example, encode: bool, decode: bool, hook: bool) -> str:
    words = [
        example.format,
        example.architecture,
        example.against,
        "yes",
        *("yes" if b else "no" for b in (encode, decode, hook)),
    ]
    return f"| {' | '.join(words)} |\n"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.label)
def test_a_format_reads_as_its_library_does(example, tmp_path):
    encode, decode, hook = measured(example, tmp_path)
    assert encode
    assert decode
    assert hook == (example.hook_name is not None)
    assert row(example, encode, decode, hook) in PAGE.read_text(), STALE


def test_every_loader_is_in_the_table():
    without = sorted(set(REGISTRY.loaders.names()) ^ {e.format for e in EXAMPLES})
    assert not without, f"{without}: add an Example of each format to tests/formats/examples.py"
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| [a-z0-9_-]+ \| .* \| (yes|no) \|$", line)]
    assert len(rows) == len(EXAMPLES), STALE


if __name__ == "__main__":  # write the table into the page
    import tempfile

    table = HEADER
    for one in EXAMPLES:
        with tempfile.TemporaryDirectory() as place:
            table += row(one, *measured(one, Path(place)))
    before, after = PAGE.read_text().split("<!-- table -->\n")[::2]
    PAGE.write_text(f"{before}<!-- table -->\n{table}<!-- table -->\n{after}")
