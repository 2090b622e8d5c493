"""The tables read from transformers' source are those it has when it is imported."""

from __future__ import annotations

from typing import get_args

import pytest

from burnish.models import families


@pytest.mark.parametrize("form", get_args(families.Form))
def test_the_forms_are_those_of_transformers(form: families.Form) -> None:
    from transformers.models.auto import modeling_auto

    assert families.with_form(form) == frozenset(getattr(modeling_auto, f"MODEL_FOR_{form}_MAPPING_NAMES"))


def test_every_text_model_is_known() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert families.known() <= frozenset(CONFIG_MAPPING_NAMES)
    assert {"llama", "gpt2", "bert", "t5", "qwen3", "gpt-sw3"} <= families.known()
    forms = [families.with_form(form) for form in get_args(families.Form)]
    assert frozenset().union(*forms) <= families.known()
