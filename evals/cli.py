"""The ``forethought`` command: what it is asked to do, and errors of one line. Commands are modules of their own.

Only what the command line itself needs is imported here: help and version must not wait for torch or hydra.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from .. import __version__
from .groups import groups
from .terminal import clean, waiting

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

ABOUT = """\
Better reasoning and faster decoding at inference time, without retraining the model.

  forethought demo                     the built-in models at work, in a minute
  forethought solve "QUESTION"         one question, streamed, with its bill
  forethought eval                     a strategy on a task, resumable, with intervals
  forethought score RUN                another verifier over a run's draws
  forethought report RUN               a run, or several, as one page to read
  forethought compare RUN RUN          two runs, problem by problem
  forethought bench                    tokens per second of each decoder
  forethought doctor                   versions, devices, kernels, memory bandwidth; --sandbox
"""

SOLVE = """\
values (KEY=VALUE):
  max_tokens, seed, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p,
  model.device (auto, cpu, cuda), model.dtype (auto, float32, bfloat16), …

examples:
  forethought solve "Ana has 4 boxes with 6 pens in each. She sells 5 pens. How many pens does Ana have now?"
  forethought solve "…" model=nano-draft max_tokens=200
  forethought solve "…" sampling=sample seed=3
  forethought solve "…" model=./my-checkpoint model.device=cuda model.dtype=bfloat16
  forethought solve "…" --multirun model=nano,nano-draft sampling.temperature=0,0.8
  echo "…" | forethought solve - --json"""

EVAL = """\
values (KEY=VALUE):
  task.count, strategy.n, strategy.select, strategy.round, run.path, run.problems, run.ks, seed, max_tokens,
  sampling.temperature, sampling.top_p, model.device (auto, cpu, cuda), …

examples:
  forethought eval task=nano_math strategy=best_of_n strategy.n=64
  forethought eval decoder=speculative strategy.n=8 run.problems=50 run.path=runs/try
  forethought eval --multirun model=nano,nano-draft strategy.select=majority,likelihood
  forethought eval task=mbpp verifier=visible strategy.select=accepted strategy.stop=first_accept

The same command goes on where it was, draw by draw, also after kill -9. A folder takes one run."""

SCORE = """\
examples:
  forethought score runs/try verifier=maths
  forethought score runs/try verifier=maths verifier.guess=true --truth

No draw is made, and none is judged twice. The results of the run are made anew: best of k, weighted votes and first
accepted draws by each verifier, held against the run's own truth."""

REPORT = """\
values (KEY=VALUE):
  out, report.problems, report.draws, report.characters

examples:
  forethought report runs/try
  forethought report runs/a runs/b out=both.html report.problems=20 report.draws=4

One HTML file without any other: curves, tables, the bill, and problems with their draws and verdicts to leaf through.
Needs matplotlib: pip install 'forethought[report]'."""

BENCH = """\
values (KEY=VALUE):
  bench.decoders, bench.samples, bench.prompts, bench.tokens, bench.repeats,
  model.device (auto, cpu, cuda), model.dtype (auto, float32, bfloat16), …

examples:
  forethought bench
  forethought bench model=org/name model.dtype=bfloat16 bench.samples=[1,64]
  forethought bench 'bench.decoders=[autoregressive]' bench.repeats=5
  forethought bench --multirun model=nano,nano-draft

Greedy, end of text ignored. The last line is one JSON object."""

DEMO = """\
values (KEY=VALUE):
  demo.models, demo.levels, demo.problems, max_tokens, seed, sampling.temperature, …

examples:
  forethought demo
  forethought demo demo.problems=200"""


class _Parser(argparse.ArgumentParser):
    """Errors of one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} ({self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character gets another one
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as in `forethought … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:  # the outermost door: everything becomes one line
        if "--debug" in arguments:
            traceback.print_exc()
        bad_input = isinstance(e, ValueError | TypeError | FileNotFoundError | NotADirectoryError)
        said = clean(" ".join(str(e).split())) or type(e).__name__
        print(f"forethought: {said if bad_input else f'{type(e).__name__}: {said}'}", file=sys.stderr)
        return BAD_INPUT if bad_input else FAILED


def _run(arguments: list[str]) -> int:
    try:  # overrides may stand between options, which argparse leaves over: they are told apart here
        args, left = _parser().parse_known_args(arguments)
    except SystemExit:  # help and version, printed
        return 0
    if unknown := [word for word in left if word.startswith("-")]:
        raise ValueError(f"unknown option {unknown[0]} (forethought {args.command} --help)")
    commands: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
        "solve": _solve, "eval": _eval, "score": _score, "report": _report, "compare": _compare, "bench": _bench,
        "demo": _demo, "doctor": _doctor,
    }  # fmt: skip
    return commands[args.command](args, left)


def _solve(args: argparse.Namespace, left: list[str]) -> int:
    _check_question(args.question)
    with waiting("starting …"):
        from .solve import solve
    return solve(args.question, [*args.overrides, *left], multirun=args.multirun, as_json=args.json)


def _eval(args: argparse.Namespace, left: list[str]) -> int:
    with waiting("starting …"):
        from .evaluate import evaluate
    return evaluate([*args.overrides, *left], multirun=args.multirun)


def _score(args: argparse.Namespace, left: list[str]) -> int:
    with waiting("starting …"):
        from .score import score
    return score(args.run, [*args.overrides, *left], multirun=args.multirun, truth=args.truth)


def _report(args: argparse.Namespace, left: list[str]) -> int:
    with waiting("starting …"):
        from .report import report
    words = [*args.runs, *left]
    return report([word for word in words if "=" not in word], [word for word in words if "=" in word])


def _compare(args: argparse.Namespace, left: list[str]) -> int:
    if left:
        raise ValueError(f"compare takes two runs, not {left[0]!r} too")
    from .compare import compare

    return compare(args.first, args.second, as_json=args.json)


def _bench(args: argparse.Namespace, left: list[str]) -> int:
    with waiting("starting …"):
        from .bench import bench
    return bench([*args.overrides, *left], multirun=args.multirun)


def _demo(args: argparse.Namespace, left: list[str]) -> int:
    with waiting("starting …"):
        from .demo import demo
    return demo([*args.overrides, *left])


def _doctor(args: argparse.Namespace, left: list[str]) -> int:
    if left:
        raise ValueError(f"doctor takes no {left[0]!r}")
    if args.sandbox:
        with waiting("attacking …"):
            from .doctor import attacked
        return attacked(as_json=args.json)
    with waiting("measuring …"):
        from .doctor import doctor, examine

        report = examine()
    return doctor(report, as_json=args.json)


def _check_question(question: str) -> None:
    if re.fullmatch(rf"(?:{'|'.join(groups())}|max_tokens|seed)(?:\.\w+)?=\S*", question):
        raise ValueError(f'the question comes first: forethought solve "…" {question}')
    try:
        question.encode()
    except UnicodeEncodeError:
        raise ValueError("the question is not valid UTF-8") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("forethought", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"forethought {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, what: str, epilog: str = "") -> _Parser:
        made: _Parser = commands.add_parser(
            name, help=what, description=what[0].upper() + what[1:] + ".", epilog=epilog, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return made

    solve = command("solve", "ask a model one question, watch it reason", _options("model", "decoder", "sampling") + SOLVE)
    solve.add_argument("question", help="in quotes; - reads it from standard input")
    about = "measure a strategy on a task; resumable"
    asked = _options("task", "strategy", "strategy/stop", "verifier", "model", "decoder", "sampling")
    evaluate = command("eval", about, asked + EVAL)
    score = command("score", "let another verifier judge a run's draws", _options("verifier") + SCORE)
    score.add_argument("run", help="a run's folder")
    score.add_argument("--truth", action="store_true", help="show what the results were if this verifier were the truth")
    report = command("report", "write one page about a run, or about several", REPORT)
    report.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders, and KEY=VALUE")
    two = command("compare", "compare two runs, problem by problem")
    two.add_argument("first", help="a run's folder")
    two.add_argument("second", help="another one")
    bench = command("bench", "measure tokens per second of each decoder on one model", _options("model", "decoder") + BENCH)
    demo = command("demo", "watch the built-in models solve problems", _options("decoder", "sampling") + DEMO)
    doctor = command("doctor", "show versions, devices, kernels, memory bandwidth")
    doctor.add_argument("--sandbox", action="store_true", help="attack the code sandbox in every known way; takes a minute")
    for each in (solve, evaluate, score, bench, demo):
        each.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings, in Hydra's syntax")
    for each in (solve, evaluate, score, bench):
        each.add_argument("-m", "--multirun", action="store_true", help="run every combination of the values listed, a,b,c")
    for each in (solve, two, doctor):
        each.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def _options(*names: str) -> str:
    """The part of a help text that lists config groups."""
    known = groups()
    more = {"model": "; or a folder, model=./checkpoint, a file, model=./file.gguf, or a Hub id, model=org/name"}
    width = max(map(len, names))
    listed = [f"  {name.replace('/', '.'):<{width}} {', '.join(known[name])}{more.get(name, '')}" for name in names]
    return "\n".join(["groups (GROUP=OPTION):", *listed, "\n"])


if __name__ == "__main__":
    sys.exit(main())
