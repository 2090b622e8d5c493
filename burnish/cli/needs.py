"""What a run will need, in words: the first line of a run, and the tables of `burnish plan`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.cli.screen import Screen
from burnish.evaluate import plain

STYLES = {"fits": "green", "tight": "yellow", "does not fit": "bold red"}


def bound(figure: Mapping[str, float]) -> str:
    """A figure's error bound, '' where it is exact."""
    value = figure["value"]
    error = (figure["high"] - value) / value if value else 0.0
    return f" ± {error:.0%}" if error else ""


def brief(needs: Mapping[str, Any]) -> str:
    """Time, memory, disk and whether it fits, on one line."""
    peak, took = needs["gpu"] if needs["gpu"]["value"] else needs["cpu"], needs["seconds"]
    told = [f"{plain.seconds(took['value'])}{bound(took)}"]
    told.append(f"{plain.size(peak['value'])}{bound(peak)} of {plain.size(needs['room'])}: {needs['verdict']}")
    return " · ".join([*told, f"{plain.size(needs['disk']['value'])} on disk"])


def _passes(states: Mapping[str, Any]) -> str:
    """How often frozen layers run, and what that saves or why."""
    if states["reason"]:
        return f"in every pass: {states['reason']}"
    kept = " and ".join(states["splits"])
    return f"once ({kept}): {plain.seconds(states['seconds'])} saved, {plain.size(states['bytes'])} on disk"


def plan(screen: Screen, told: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """A table of what each rung needs, then what mends those that do not fit; without a task, the largest bases."""
    if "largest" in told:
        screen.line(
            ("What this machine can tune", "bold"),
            f", with {plain.size(told['room'])} free and {told['row']}-token rows",
        )
        rows = [
            [one["rung"], one["name"] or "none of those known", f"{one['parameters']:,}", plain.size(one["peak"])]
            for one in told["largest"]
        ]
        screen.table(["rung", "largest base", "parameters", "peak memory"], rows, left=2)
        return
    screen.line((str(told["base"]), "bold"), f"  {told['method']}")
    rows = []
    for rung, one in told["rungs"].items():
        figures = (one[name] for name in ("parameters", "trained", "tokens", "steps"))
        exact = [f"{figure['value']:,}{bound(figure)}" for figure in figures]
        took, peak = one["seconds"], one["cpu"]
        gpu = f"{plain.size(one['gpu']['value'])}{bound(one['gpu'])}" if one["gpu"]["value"] else "–"
        rough = [f"{plain.seconds(took['value'])}{bound(took)}", f"{plain.size(peak['value'])}{bound(peak)}", gpu]
        rows.append([rung, one["verdict"], *exact, *rough, plain.size(one["disk"]["value"])])
    heads = ["rung", "", "parameters", "trained", "tokens", "steps", "time", "memory", "GPU", "disk"]
    screen.table(heads, rows, left=2, first=(0, 1, 6, 7, 3, 5, 4, 2, 9, 8))
    for rung, words in told["stacked"].items():
        screen.line(f"  {rung}  ", words)
    for rung, one in told["rungs"].items():
        cut = f"micro-batches of {one['micro_tokens']:,} tokens"
        again = ", activations made again in the backward pass" if one["recompute"] else ""
        screen.line(
            f"  {rung}  ", (one["verdict"], STYLES[one["verdict"]]), f" in {plain.size(one['room'])}: {cut}{again}"
        )
        if frozen := one["states"].get("layers"):
            screen.line(f"     the {frozen} frozen layers run ", _passes(one["states"]))
        for remedy in one["remedies"]:
            words = " ".join(f"--set {override}" for override in remedy["set"])
            command = f"--rung {remedy['rung']}" if remedy["rung"] else words
            screen.line("     do    ", f"{remedy['text']} ({plain.size(remedy['peak'])}): {command}")
        if one["verdict"] == "does not fit" and not one["remedies"]:
            screen.line("     do    ", "take a smaller base: `burnish plan` alone says how large one may be")
