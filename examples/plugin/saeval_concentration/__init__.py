"""How concentrated the feature activations of an SAE are."""

from pathlib import Path

from saeval.plugin import RegisteredSuite, hookimpl
from saeval_concentration.metric import Concentration, largest_share


@hookimpl
def saeval_metrics():
    return [Concentration]


@hookimpl
def saeval_quantities():
    return [largest_share]


@hookimpl
def saeval_suites():
    path = Path(__file__).with_name("testbed.yaml")
    return [RegisteredSuite("concentration-testbed", path, "Concentration of the testbed's SAEs")]
