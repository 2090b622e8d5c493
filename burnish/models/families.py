"""Which architectures transformers has, read from its source text: importing its tables would load torch."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Literal

from burnish.errors import ModelError

Form = Literal["CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SEQUENCE_CLASSIFICATION"]


@cache
def known() -> frozenset[str]:
    """Every model_type that transformers has a configuration for."""
    return frozenset(_tables("auto_mappings.py")["CONFIG_MAPPING_NAMES"]) | {"gpt-sw3"}


@cache
def with_form(form: Form) -> frozenset[str]:
    """The model_types that have a class of this form, e.g. CAUSAL_LM."""
    return frozenset(_tables("modeling_auto.py")[f"MODEL_FOR_{form}_MAPPING_NAMES"])


@cache
def _tables(file: str) -> dict[str, list[str]]:
    """The keys of each table of pairs, or of a dict, that a file of transformers assigns to a name at its top."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        raise ModelError("transformers is not installed", "", "pip install transformers")
    source = Path(found.origin).parent / "models" / "auto" / file
    told: dict[str, list[str]] = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Call):
            for pairs in node.value.args:
                keys = (
                    pairs.keys
                    if isinstance(pairs, ast.Dict)
                    else [pair.elts[0] for pair in getattr(pairs, "elts", []) if isinstance(pair, ast.Tuple)]
                )
                told[node.targets[0].id] = [str(key.value) for key in keys if isinstance(key, ast.Constant)]
    return told
