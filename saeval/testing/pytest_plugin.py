"""Fixtures for pytest, which installing saeval makes available: a tiny model, SAE and data that need no download.

A project that uses none of them pays nothing: torch is imported by the first fixture that a test requests.
PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from saeval import testing

if TYPE_CHECKING:
    from saeval.interfaces.data import Dataset


@pytest.fixture
def tiny_model() -> testing.TinyModel:
    """A random causal model of 3 blocks, `d_model` 16, vocabulary 50; hooks `blocks.{i}.hook_resid_pre`."""
    return testing.TinyModel()


@pytest.fixture
def tiny_reward_model() -> testing.TinyModel:
    """The same with a reward head."""
    return testing.TinyModel(kind="reward")


@pytest.fixture
def tiny_sae() -> testing.TinySAE:
    """A random ReLU SAE of 32 features at `blocks.1.hook_resid_pre` of the tiny model."""
    return testing.TinySAE()


@pytest.fixture
def tiny_rows() -> Dataset:
    """24 random rows of 12 tokens from 8 documents, some of them shorter."""
    return testing.tiny_tokens()


@pytest.fixture
def tiny_pairs() -> Dataset:
    """10 random preference pairs, each with a shared prefix."""
    return testing.TinyPairs()


@pytest.fixture
def tiny_labelled_rows() -> Dataset:
    """24 rows of two classes, which their tokens tell, with labels of rows and of tokens."""
    return testing.tiny_labelled()
