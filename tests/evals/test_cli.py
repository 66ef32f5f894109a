"""The command line as its users meet it: answers on stdout, errors of one line, nothing heavy before it is needed."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import forethought
from forethought import Completion
from forethought.evals import bench, demo, solve
from forethought.evals.cli import BAD_INPUT, FAILED, INTERRUPTED, main
from forethought.nano.tokenizer import END

QUESTION = "Ana has 7 pens. She buys 5 more pens. How many pens does Ana have now?"
BILL = r"tiny: 6 tokens in \d+\.\d\d s, [\d,]+ tokens/s, 2\d prompt tokens, 6 forwards, [\d.]+ kB KV"


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """What ``forethought argv`` prints; it must succeed, silently on stderr."""
    assert main(argv) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def error(capsys: pytest.CaptureFixture[str], *argv: str, code: int = BAD_INPUT) -> str:
    """The one line that ``forethought argv`` fails with."""
    assert main(argv) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("forethought: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("command", ["", "solve", "eval", "score", "report", "compare", "bench", "demo", "doctor"])
def test_help_is_there_before_torch(command: str) -> None:
    code = f"""
import atexit, sys
from forethought.evals.cli import main
atexit.register(lambda: print(*{{"torch", "hydra", "numpy", "transformers"}} & set(sys.modules), end="", file=sys.stderr))
sys.exit(main({[*command.split(), "--help"]}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    options = {
        "solve": ["autoregressive", "nano-draft", "greedy"], "bench": ["autoregressive", "nano-draft"], "demo": ["greedy"],
        "eval": ["nano_math", "best_of_n", "first_accept", "visible", "sample"], "score": ["maths", "visible"],
    }  # fmt: skip
    for listed in options.get(command, []):
        groups = "model|decoder|sampling|task|strategy|strategy.stop|verifier"
        assert re.search(rf"^  ({groups}) .*\b{listed}\b", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) <= 130


def test_module_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "forethought.evals.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"forethought {forethought.__version__}\n"


def test_solve_prints_an_answer_and_its_bill(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "solve", QUESTION, f"model={checkpoint}", "max_tokens=6")
    assert re.fullmatch(BILL + ", greedy, cut off at max_tokens", out.splitlines()[-1])
    assert "\x1b" not in out
    out = run(capsys, "solve", QUESTION, f"model={checkpoint}", "max_tokens=6", "sampling=sample", "seed=3")
    assert re.fullmatch(BILL + ", temperature 0.8, seed 3, cut off at max_tokens", out.splitlines()[-1])


def test_options_may_stand_anywhere(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run(capsys, "solve", QUESTION, f"model={checkpoint}", "max_tokens=6", "--json")
    mixed = run(capsys, "solve", "--json", QUESTION, f"model={checkpoint}", "--debug", "max_tokens=6")
    assert json.loads(plain)["completion"]["token_ids"] == json.loads(mixed)["completion"]["token_ids"]


def test_solve_as_json(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(run(capsys, "solve", QUESTION, f"model={checkpoint}", "max_tokens=6", "--json"))
    assert (said["model"], said["question"]) == ("tiny", QUESTION)
    completion = Completion.from_json(said["completion"])
    assert (completion.answer, completion.reasoning, completion.cost.kept) == (said["answer"], said["reasoning"], 6)


def test_same_seed_same_text(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    def text(*overrides: str) -> str:
        out = run(capsys, "solve", QUESTION, f"model={checkpoint}", "max_tokens=20", "sampling=sample", "--json", *overrides)
        return json.loads(out)["completion"]["token_ids"]

    assert text("seed=3") == text("seed=3") != text("seed=4")


def test_question_from_standard_input(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION + "\n"))
    assert json.loads(run(capsys, "solve", "-", f"model={checkpoint}", "max_tokens=2", "--json"))["question"] == QUESTION


def test_raw_text_without_a_template(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(tmp_path / "bare", template=False)
    assert "asked as raw text: no chat template" in run(capsys, "solve", QUESTION, f"model={folder}", "max_tokens=2")


def prompt_tokens(capsys: pytest.CaptureFixture[str], question: str, *overrides: str) -> int:
    """The length of the prompt that a question becomes; both forms of the output must agree on it."""
    command = ["solve", question, "max_tokens=1", "sampling=greedy", *overrides]
    shown = run(capsys, *command)
    cost = json.loads(run(capsys, *command, "--json"))["completion"]["cost"]
    length = int(cost["prompt"]) + int(cost["cached"])
    assert f" {length} prompt tokens" in shown
    return length


@pytest.mark.parametrize("template", [False, True])
def test_a_question_does_not_become_special_tokens_unless_asked(
    template: bool, make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"model={make_checkpoint(tmp_path / 'model', template=template)}"
    bare = prompt_tokens(capsys, "Ana has 7", model)
    assert prompt_tokens(capsys, f"Ana has 7{END}", model, "parse_special=true") == bare + 1
    assert prompt_tokens(capsys, f"Ana has 7{END}", model) > bare + 1


def test_what_a_chat_template_is_told(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(tmp_path / "model")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if longer %}{{ '7' * longer }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    bare = prompt_tokens(capsys, "Ana has ", f"model={folder}")
    assert prompt_tokens(capsys, "Ana has ", f"model={folder}", "chat.longer=3") == bare + 3
    assert prompt_tokens(capsys, "Ana has ", f"model={folder}", "chat={longer: 4}") == bare + 4
    assert "not for the template" in error(capsys, "solve", "Ana has ", f"model={folder}", "chat.messages=3")
    assert "knows no 'shorter'" in error(capsys, "solve", "Ana has ", f"model={folder}", "chat.shorter=3")
    bare_folder = make_checkpoint(tmp_path / "bare", template=False)
    assert "options of a chat template" in error(capsys, "solve", "Ana has ", f"model={bare_folder}", "chat.longer=3")


def test_multirun_runs_every_combination(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["--multirun", f"model={checkpoint}", "decoder=autoregressive", "sampling.temperature=0,0.8", "max_tokens=3,6"]
    out = run(capsys, "solve", QUESTION, *sweep)
    heads = [line for line in out.splitlines() if line.startswith("── ")]
    assert [head.split("decoder=autoregressive ")[1] for head in heads] == [
        f"sampling.temperature={t} max_tokens={n}" for t in ("0", "0.8") for n in (3, 6)
    ]
    assert out.count("cut off at max_tokens") == 4
    lines = run(capsys, "solve", QUESTION, *sweep, "--json").splitlines()
    assert [json.loads(line)["completion"]["cost"]["kept"] for line in lines] == [3, 6, 3, 6]


def test_a_sweep_is_checked_before_it_starts(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such sampling" in error(capsys, "solve", QUESTION, "-m", f"model={checkpoint}", "sampling=greedy,nope")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["solve", ""], "the question is empty"),
        (["solve", "  \n"], "the question is empty"),
        (["solve", "\udcff"], "not valid UTF-8"),
        (["solve", "model=nano"], 'the question comes first: forethought solve "…" model=nano'),
        (["solve"], "required: question (forethought solve --help)"),
        ([], "required: COMMAND (forethought --help)"),
        (["nope"], "choose from"),
        (["solve", QUESTION, "--nope"], "unknown option --nope (forethought solve --help)"),
        (["solve", "How", "many?"], "'many?' is not KEY=VALUE (a question of several words is one argument, in quotes)"),
        (["solve", QUESTION, "decoder=nope"], "decoder=nope: no such decoder; there is"),
        (["solve", QUESTION, "model=nope"], "no such model"),
        (["solve", QUESTION, "model=./nope"], "./nope: no such folder"),
        (["solve", QUESTION, "sampling.temperature=-1"], "temperature=-1: 0 (greedy) or a"),
        (["solve", QUESTION, "sampling.temperature=hot"], "temperature='hot': a number"),
        (["solve", QUESTION, "bench.repeats=1"], "no such setting"),
        (["solve", QUESTION, "chat=true"], "chat=True: options of a chat template, chat.enable_thinking=false"),
        (["solve", QUESTION, "parse_special=2"], "parse_special=2: true or false"),
        (["bench", "chat.enable_thinking=false"], "no such setting"),
        (["solve", QUESTION, "~max_tokens"], "~max_tokens: a setting cannot be taken out; give it a value, or null"),
        (["eval", "~run"], "~run: a setting cannot be taken out"),
        (["eval", "run=null"], "None stands where the config describes a component"),
        (["eval", "run.ks=5"], "run.ks=5: a list of whole numbers"),
        (["eval", "run.path=5"], "run.path=5: a folder's name, or null"),
        (["eval", "strategy.stop=first_accept"], "FirstAccept() ends with a draw that a verifier accepts, and there is none"),
        (["solve", QUESTION, "--multirun", "seed=glob(*)"], "seed=glob(*): a sweep over nothing"),
        (["solve", QUESTION, "model.device=tpu"], "device='tpu': Expected one of cpu, cuda"),
        (["solve", QUESTION, "model.device=cuda:99"], "device='cuda:99': there"),
        (["bench", "bench.samples=8"], "bench.samples=8: a list, [a,b]"),
        (["bench", "bench.samples=[0]"], "bench.samples=[0]: whole numbers of at least 1"),
        (["bench", "bench.decoders=autoregressive"], "bench.decoders='autoregressive': a list, [a,b]"),
        (["bench", "bench.decoders=[nope]"], "decoder=nope: no such decoder"),
        (["bench", "decoder=autoregressive"], "decoder=autoregressive: bench takes a list, bench.decoders=[autoregressive]"),
        (["bench", "sampling=sample"], "sampling=sample: no such setting; bench has model, decoder, bench"),
        (["bench", "seed=1"], "seed=1: no such setting; bench has model, decoder, bench"),
        (["demo", "model=nano"], "model=nano: demo takes a list, demo.models=[nano]"),
        (["demo", "demo.levels=[9]"], "a list of levels from 1 to 8"),
        (["demo", "demo.problems=0"], "demo.problems=0"),
        (["demo", "demo.models=nano"], "demo.models='nano': a list"),
        (["doctor", "model=nano"], "doctor takes no 'model=nano'"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error(capsys, *argv)


def test_what_only_the_model_can_refuse(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "512 positions" in error(capsys, "solve", QUESTION, f"model={checkpoint}", "max_tokens=5000")
    assert "max_tokens=0" in error(capsys, "solve", QUESTION, f"model={checkpoint}", "max_tokens=0")
    assert "dtype='int7'" in error(capsys, "solve", QUESTION, f"model={checkpoint}", "model.dtype=int7")


def test_a_defect_is_one_line_and_debug_shows_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise RuntimeError("something\nbroke")

    monkeypatch.setattr(solve, "solve", broken)
    assert error(capsys, "solve", QUESTION, code=FAILED) == "forethought: RuntimeError: something broke\n"
    assert main(["solve", QUESTION, "--debug"]) == FAILED
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_shows_what_there_is_and_the_bill(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = forethought.Engine.stream

    def interrupted(self, *args, **options):
        for n, piece in enumerate(stream(self, *args, **options)):
            yield piece
            if n == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(forethought.Engine, "stream", interrupted)
    argv = ["solve", QUESTION, f"model={checkpoint}", "sampling.temperature=1", "max_tokens=400", "-m", "seed=1,2"]
    out = run(capsys, *argv, code=INTERRUPTED)
    assert out.splitlines()[-1].startswith("tiny: ")
    assert out.splitlines()[-1].endswith("seed 1, cancelled")
    assert "seed=2" not in out


def test_interrupt_elsewhere_is_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(solve, "solve", interrupted)
    run(capsys, "solve", QUESTION, code=INTERRUPTED)


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "forethought.evals.cli", "solve", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.parametrize("text", ["<think>\x1b[31m\x1b]0;x\x07red\u202e</think>\x9b2Jdone"])
def test_model_text_cannot_steer_the_terminal(
    text: str, checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    completion = Completion(text, [1], "stop", seed=0)
    monkeypatch.setattr(forethought.Engine, "stream", lambda *_, **__: iter([forethought.Piece(text, [1], completion)]))
    out = run(capsys, "solve", QUESTION, f"model={checkpoint}")
    assert out.startswith("0;xred\n\ndone\n")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out)
    monkeypatch.setattr(forethought.Engine, "generate", lambda *_, **__: [completion])
    assert run(capsys, "solve", QUESTION, f"model={checkpoint}", "--json").isascii()


def test_bench_prints_a_table_and_json(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["bench.samples=[1,4]", "bench.tokens=3", "bench.prompts=2", "bench.repeats=2", "bench.decoders=[autoregressive]"]
    lines = run(capsys, "bench", f"model={checkpoint}", *small).splitlines()
    assert re.fullmatch(r"tiny, [\d.]+ k parameters, float32", lines[0])
    assert [line.split()[1] for line in lines if line.startswith("autoregressive")] == ["1", "4"]
    said = json.loads(lines[-1])
    assert (said["model"], said["repeats"], said["machine"]["device"]) == ("tiny", 2, "cpu")
    # Every sample makes its tokens with the others of its prompt: two prompts of three steps each, however many samples.
    assert [(r["samples"], r["tokens"], r["forwards"], len(r["runs"])) for r in said["results"]] == [(1, 6, 6, 2), (4, 24, 6, 2)]


def test_bench_multirun(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["bench.samples=[1]", "bench.prompts=1", "bench.repeats=1"]
    out = run(capsys, "bench", "-m", f"model={checkpoint}", "bench.tokens=2,3", *small)
    assert [json.loads(line)["tokens"] for line in out.splitlines() if line.startswith("{")] == [2, 3]


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from forethought.evals import doctor

    monkeypatch.setattr(doctor, "CPU_BYTES", 1 << 20)
    monkeypatch.setattr(doctor, "GPU_BYTES", 1 << 24)
    missing = int(not doctor.built_in())
    said = json.loads(run(capsys, "doctor", "--json", code=missing))
    assert said["versions"]["forethought"] == forethought.__version__
    assert said["attention"]["runs"] == "torch" or said["devices"].keys() > {"cpu"}
    assert all(found["copy"] > 0 and found["matrix_vector"] > 0 for found in said["devices"].values())
    page = run(capsys, "doctor", code=missing)
    assert "matrix-vector" in page
    for name in ("attention", "prefill", "steps"):
        assert f"{said[name]['runs']} ({said[name]['why']})" in page
    assert set(said["batch"]) == {"float32", "bfloat16"}
    assert "batch_invariant=True" in page or not any(said["batch"].values())
    assert ("no built-in models" in page) == bool(missing)
    monkeypatch.setattr(doctor, "BUILT_IN", Path("/nowhere"))
    assert "problem: no built-in models under /nowhere" in run(capsys, "doctor", code=FAILED)


def test_demo_on_any_model(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "demo", f"demo.models=[{checkpoint}]", "demo.levels=[1,3]", "demo.problems=8", "max_tokens=5")
    assert out.count("✗ the answer is ") == 2
    assert [line.split()[0] for line in out.splitlines() if line.startswith("tiny ")] == ["tiny"]
    for command in demo.NEXT:
        assert command in out


def test_demo_interrupted(checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    completion = Completion("", [], "cancelled")
    monkeypatch.setattr(forethought.Engine, "generate", lambda *_, **__: [[completion]] * 8)
    run(capsys, "demo", f"demo.models=[{checkpoint}]", "demo.levels=[]", "demo.problems=8", code=INTERRUPTED)


def test_bench_interrupted(checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forethought.Engine, "generate", lambda *_, **__: [Completion("", [], "cancelled")])
    run(capsys, "bench", f"model={checkpoint}", code=INTERRUPTED)
    assert bench.Bench(["a"], [1], 1, 1, 1).tokens == 1


@pytest.mark.usefixtures("nano")
def test_solve_with_nano(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "solve", QUESTION)
    assert r"\boxed{12}" in out
    assert "<think>" not in out
    assert out.splitlines()[-1].startswith("nano: ")


@pytest.mark.usefixtures("nano")
@pytest.mark.slow
def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "demo")
    assert {line.split()[0] for line in out.splitlines() if re.match(r"nano\S* .*%", line)} == {"nano", "nano-draft"}


def test_doctor_on_a_card_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernel, what prefill runs by and whose estimate that is, and whether steps are recorded."""
    import torch

    from forethought.evals import doctor
    from forethought.kernels import attention

    here, there = torch.device("cpu"), torch.device("cuda", 0)
    found = doctor.kernels(here)
    assert {name: about["runs"] for name, about in found.items()} == {
        "attention": "torch", "prefill": "torch", "steps": "launched one by one",
    }  # fmt: skip
    assert found["steps"]["why"] == "cpu: only a GPU records"
    about = SimpleNamespace(name="some card", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(attention, "_best", lambda *about: ("triton", "preferred on a GPU"))
    attention.flash_from.cache_clear()
    found = doctor.kernels(there)
    assert found["attention"] == {"runs": "triton", "why": "preferred on a GPU"}
    assert found["prefill"]["runs"] == "torch's flash attention"
    assert "any of compute capability 9.0: an estimate" in found["prefill"]["why"]
    assert found["steps"] == {"runs": "recorded as graphs", "why": "up to 256 new tokens of our own transformer"}
    monkeypatch.setattr(attention, "_best", lambda *about: ("torch", "triton: not importable"))
    found = doctor.kernels(there)
    assert found["prefill"]["runs"] == "torch"
    assert found["steps"]["why"] == "attention in plain torch asks the host about its tables"
    attention.flash_from.cache_clear()


@pytest.mark.parametrize(
    ("stopped", "code", "word"), [([True, None], 0, "stopped"), ([True, False], 1, "GOT THROUGH"), ([None, None], 1, "not here")]
)
def test_doctor_fails_where_an_attack_gets_through(
    stopped: list[bool | None], code: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from forethought.evals import doctor
    from forethought.verifiers.doctor import Row

    rows = [Row(f"attack {i}", "landlock", each, "why\x1b[2J") for i, each in enumerate(stopped)]
    monkeypatch.setattr(doctor, "attack_matrix", lambda: rows)
    assert main(["doctor", "--sandbox"]) == code
    printed = capsys.readouterr().out
    assert word in printed
    assert "\x1b" not in printed
    assert main(["doctor", "--sandbox", "--json"]) == code
    assert json.loads(capsys.readouterr().out)[0]["attack"] == "attack 0"
