"""The command line: words in, a verb of `workflow` called, its result shown, an exit code out.

Commands and options come from the verbs' own signatures, so this file says only what each option means.
Exit codes: 0 done; 1 done, but the goal is not met (or `check` found errors); 2 wrong use or bad input;
3 the run failed; 130 interrupted and saved.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any

import typer

from burnish import VERBS, __version__, store
from burnish.errors import BurnishError, Interrupted, TrainError

ABOUT = """Fine-tune a language model on your own machine, and prove that it was worth it.

`burnish demo` shows everything on embedded data; `burnish init DATA` starts with yours.
"""

HELP = {
    "data": "A file or folder: csv, tsv, json, jsonl, parquet, txt.",
    "task": "The task file.",
    "target": "A run's name, or an artifact's folder.",
    "artifact": "A run's name, or an artifact's folder.",
    "out": "The file to write.",
    "base": "The model to start from: a folder, a Hub name, or burnish-tiny (embedded).",
    "force": "Overwrite the file.",
    "set": "A key of the task file and its value, e.g. train.epochs=2; may be given again.",
    "show": "Print so many rows as the model sees them, the trained part marked.",
    "again": "Start afresh instead of going on with what is saved.",
    "rung": "One trained rung, e.g. lora.",
    "fast": "A smaller demo.",
    "devices": "Processes on this machine that train together, one a GPU; 0: one for every GPU that is visible.",
    "shard": "Cut the model over all devices (FSDP2) even where it would fit on each.",
    "nodes": "Machines that train together.",
    "node_rank": "Which of the machines this is, from 0.",
    "rendezvous": "HOST:PORT of the first machine, where the others find it; the port after it is used too.",
    "slurm": "Write an sbatch script; it is not submitted.",
    "limit": "How long the job may run.",
    "a": "A run's name, or an artifact's folder; a run stands for the rung its verdict names.",
    "b": "The other one: a run's name, or an artifact's folder.",
    "changing": "How fast the facts behind the answers change: never, yearly, monthly, weekly or daily.",
    "seeds": "Train each trained rung from so many seeds; the verdict then covers rows and seeds.",
    "search": "Try so many settings of each trained rung on validation rows (learning rate and epochs).",
    "curve": "Also train on an eighth, a quarter and half of the rows: would more data help?",
}
METAVARS = {
    "set": "KEY=VALUE",
    "show": "N",
    "seeds": "N",
    "search": "N",
    "changing": "PACE",
    "out": "FILE",
    "base": "MODEL",
    "rung": "NAME",
    "devices": "N",
    "nodes": "N",
    "node_rank": "K",
    "rendezvous": "HOST:PORT",
    "limit": "HH:MM:SS",
}
TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "Sequence[str]": list[str]}


class UsageError(BurnishError):
    """The words are not a command."""


class Defect(BurnishError):
    """What nobody foresaw: our fault."""

    exit_code = 3


@dataclass(frozen=True)
class Call:
    """What the command line asked for."""

    verb: str
    arguments: Mapping[str, Any]


def main() -> None:
    """The `burnish` command."""
    from burnish import workflow

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter the terminal cannot show must not end a run
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:], workflow))


def run(argv: Sequence[str], verbs: Any) -> int:
    """Do what the words ask with the verbs given; returns the exit code."""
    as_json, debug = "--json" in argv, "--debug" in argv  # also for words that cannot be parsed
    try:
        call = parse(argv, verbs)
        return call if isinstance(call, int) else perform(call, verbs, as_json, debug)
    except (Exception, KeyboardInterrupt) as problem:
        return fail(as_error(problem), as_json, debug)


# --- words to a call -----------------------------------------------------------------------------------------


def parse(argv: Sequence[str], verbs: Any) -> Call | int:
    """The call behind the words, or the exit code when --help, --version or a completion has answered."""
    command = typer.main.get_command(build(verbs))
    try:
        asked = command.main(list(argv) or ["--help"], prog_name="burnish", standalone_mode=False)
    except Exception as problem:
        if not hasattr(problem, "format_message"):  # how a usage error is known in every release of typer
            raise
        where = getattr(getattr(problem, "ctx", None), "command_path", "burnish")
        raise UsageError(problem.format_message(), where, f"`{where} --help` says what it takes") from None
    return asked if isinstance(asked, Call) else int(asked or 0)


def build(verbs: Any) -> typer.Typer:
    """The typer application over a set of verbs; its commands do nothing but return a Call."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.callback(help=ABOUT)
    def burnish(
        version: Annotated[
            bool, typer.Option("--version", help="Say which Burnish this is.", callback=_version)
        ] = False,
    ) -> None: ...

    for verb in VERBS:
        command = getattr(verbs, verb)
        app.command(verb, help=(inspect.getdoc(command) or "").partition("\n\n")[0])(_asking(verb, command))
    return app


def _version(asked: bool) -> None:
    if asked:
        print(f"burnish {__version__}")
        raise typer.Exit


def _asking(verb: str, command: Callable[..., Any]) -> Callable[..., Call]:
    """A function with the parameters of a verb, as typer reads them, that returns the Call."""

    def ask(**arguments: Any) -> Call:
        return Call(verb, {name: value for name, value in arguments.items() if name not in ("json", "debug")})

    parameters = [_parameter(item) for item in inspect.signature(command).parameters.values() if item.name != "say"]
    ask.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *parameters,
            _flag("json", "Print the result as JSON on stdout, all else on stderr."),
            _flag("debug", "On an error, also print where in the code it was."),
        ]
    )
    ask.__annotations__ = {}
    return ask


def _parameter(item: inspect.Parameter) -> inspect.Parameter:
    kind, doc = TYPES[item.annotation], HELP[item.name]
    if kind is bool:
        return _flag(item.name, doc)
    info: Any
    metavar = METAVARS.get(item.name, item.name.upper())
    if item.kind is inspect.Parameter.KEYWORD_ONLY:
        name = f"--{item.name.replace('_', '-')}"
        info = typer.Option(name, help=doc, metavar=metavar, show_default=bool(item.default))
    else:
        completion = run_names if item.name in ("artifact", "target", "a", "b") else None
        info = typer.Argument(help=doc, metavar=metavar, autocompletion=completion)
    default = list(item.default) if kind == list[str] else item.default
    return _named(item.name, Annotated[kind, info], default)


def _flag(name: str, doc: str) -> inspect.Parameter:
    return _named(name, Annotated[bool, typer.Option(f"--{name}", help=doc)], False)


def _named(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def run_names(incomplete: str) -> list[str]:
    """Names of runs for the shell's completion."""
    if not store.runs().is_dir():
        return []
    return sorted(path.name for path in store.runs().iterdir() if path.is_dir() and path.name.startswith(incomplete))


# --- a call to a result --------------------------------------------------------------------------------------


def perform(call: Call, verbs: Any, as_json: bool, debug: bool) -> int:
    """Call the verb, show what it returns, and say how it ended."""
    from burnish.cli import show
    from burnish.cli.screen import Screen

    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to developers; Burnish's own warnings are events
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
    verb = getattr(verbs, call.verb)
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes under torchrun, one
    if call.verb == "chat":
        from burnish.cli.talk import talk

        with _readers_may_leave():
            talk(verb(**call.arguments), as_json)
        return 0
    with contextlib.ExitStack() as stack:
        if as_json:  # stdout is for one object alone, whatever a library prints
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        arguments = dict(call.arguments)
        if "say" in inspect.signature(verb).parameters:
            stack.enter_context(_stoppable())
            if not as_json and speaks:
                from burnish.cli.progress import Progress

                arguments["say"] = stack.enter_context(Progress(Screen(sys.stderr)))
        result = verb(**arguments)
    if not speaks:
        return 0
    with _readers_may_leave():
        show.VIEWS[call.verb](Screen(sys.stderr if as_json else sys.stdout), result, call.arguments)
        if as_json:
            told = {"runs": result} if call.verb == "runs" else result
            print(json.dumps(_plain(told)))  # ASCII: no letter of a stranger reaches a terminal
    return 0 if call.verb == "demo" or _reached(result) else 1  # a demo shows; it sets no goal that could be missed


def _reached(result: Any) -> bool:
    """Whether what was asked for came out: the verdict of a Report, `ok` of a check, a rung that ran."""
    if hasattr(result, "verdict"):
        return bool(result.verdict.met)
    if isinstance(result, Mapping):
        return bool(result.get("ok", True))
    return not getattr(result, "skipped", "")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks the work to save and end after its step; the second ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if store.stop_requested():
            raise KeyboardInterrupt
        store.request_stop()
        # os.write: a handler may come in the middle of a print
        os.write(2, b"\nStopping after this step, then saving.  Ctrl-C again stops at once.\n")

    kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _readers_may_leave() -> Iterator[None]:
    """`burnish runs | head -1` ends quietly."""
    from burnish.cli.screen import silence

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)


def _plain(value: Any) -> Any:
    """A record as JSON can hold it; a number that is not finite becomes null."""
    if hasattr(value, "to_json"):
        value = value.to_json()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


# --- a problem to three lines --------------------------------------------------------------------------------


def as_error(problem: BaseException) -> BurnishError:
    """Any exception as what, where, do; what nobody foresaw is said to be our fault."""
    if isinstance(problem, BurnishError):
        return problem
    told: BurnishError
    if isinstance(problem, KeyboardInterrupt):
        do = "give the same command again: it goes on from what was saved"
        told = Interrupted("Stopped at once; what was saved before is intact", do=do)
    elif isinstance(problem, MemoryError):
        do = "make data.max_length, train.micro_tokens or evaluate.batch_tokens smaller, or take a smaller base"
        told = TrainError("Out of memory", do=do)
    elif isinstance(problem, OSError) and problem.filename:
        told = BurnishError(
            problem.strerror or str(problem), str(problem.filename), "check the path and who may use it"
        )
    else:
        place = traceback.extract_tb(problem.__traceback__)[-1]
        told = Defect(
            f"This is a defect in Burnish: {type(problem).__name__}: {' '.join(str(problem).split())}",
            f"{place.filename} line {place.lineno}",
            "report it where you got Burnish, with what the same command says after --debug; what was saved is intact",
        )
    told.__cause__ = problem
    return told


def fail(problem: BurnishError, as_json: bool, debug: bool) -> int:
    """Say what went wrong, where, and what to do; returns the exit code."""
    from burnish.cli.screen import Screen

    if debug:
        traceback.print_exception(problem)
    with _readers_may_leave():
        if as_json:
            print(json.dumps({"error": {**problem.to_json(), "exit_code": problem.exit_code}}))
        Screen(sys.stderr).error(problem)
    return problem.exit_code


if __name__ == "__main__":
    main()
