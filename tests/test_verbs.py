"""The public verbs are there, whatever was imported before."""

import subprocess
import sys


def test_a_folder_with_a_verbs_name_does_not_take_its_place() -> None:
    code = """
import sys, types
workflow = types.ModuleType("burnish.workflow")
workflow.train = workflow.evaluate = lambda task: task
sys.modules["burnish.workflow"] = workflow
import burnish
burnish.workflow = workflow
from burnish.train import timetable
from burnish.evaluate import plain
assert burnish.train("a") == burnish.evaluate("a") == "a"
assert timetable.Timetable and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
