"""Every option of every group composes and builds; overrides that mean nothing are refused in one line that helps."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from forethought import Engine
from forethought.backend.decoder import Decoder
from forethought.evals.config import build, compose, expand, options
from forethought.evals.groups import CONF, groups
from forethought.verifiers.verifier import Verifier

OPTIONS = [(group, option) for group, names in groups().items() for option in names]


def test_groups_are_the_folders() -> None:
    assert {"model", "decoder", "sampling"} <= set(groups())
    assert "autoregressive" in groups()["decoder"]
    assert len(OPTIONS) == len(list(CONF.glob("*/**/*.yaml")))


EVAL = ("task", "strategy", "strategy/stop", "verifier")
"""Groups of what is evaluated, on what, and by whom."""


def node(config: DictConfig, group: str) -> DictConfig | None:
    return OmegaConf.select(config, group.replace("/", "."))


@pytest.mark.parametrize("root", sorted(path.stem for path in CONF.glob("*.yaml")))
@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(root: str, group: str, option: str) -> None:
    not_there = (group in EVAL and root != "eval") or root in ("report", "score")
    if (root, group) == ("bench", "sampling") or (not_there and (root, group) != ("score", "verifier")):
        assert node(compose(root), group) is None  # bench measures greedy decoding, and refuses what it would not heed
        return
    path = ["model.name_or_path=x"] if option == "hf" else []
    config = compose(root, [f"{group}={option}", *path])
    assert node(config, group) is not None
    if root not in ("bench", "score"):
        assert options(config)["seed"] == 0


@pytest.mark.parametrize("option", groups()["decoder"])
def test_every_decoder_builds_and_decodes(option: str, checkpoint: str) -> None:
    config = compose("config", [f"decoder={option}", f"model={checkpoint}"])
    decoder = build(config.decoder)
    assert isinstance(decoder, Decoder)
    with Engine(build(config.model), decoder) as engine:
        (completion,) = engine.generate("Tom has", max_tokens=4, ignore_eos=True)
    assert len(completion.token_ids) == 4


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize("option", [name for name in groups()["model"] if name != "hf"])
def test_every_model_builds(option: str) -> None:
    assert build(compose("config", [f"model={option}"]).model).info.name == option


@pytest.mark.parametrize("option", groups()["strategy/stop"])
def test_every_stopping_rule_builds_into_the_strategy(option: str) -> None:
    config = compose("eval", [f"strategy.stop={option}"])
    assert config == compose("eval", [f"strategy/stop={option}"])
    assert build(config.strategy).keywords["stop"].done(accepted=1, rejected=0, votes=[30]) is True


@pytest.mark.parametrize("option", ["maths", "visible"])
def test_verifiers_without_a_model_build(option: str) -> None:
    verifier = build(compose("score", [f"verifier={option}"]).verifier)
    assert isinstance(verifier, Verifier)
    verifier.close()


def test_of_what_may_be_missing_null_is_none() -> None:
    assert compose("eval", ["verifier=null", "strategy.stop=null"]) == compose("eval")
    assert "verifier" not in compose("eval")
    assert [compose("eval", run).get("verifier") is None for run in expand(["verifier=null,maths"])] == [True, False]


def test_a_node_holds_a_target_and_its_arguments() -> None:
    for group, option in OPTIONS:
        if group != "sampling":  # options of generate, not a component
            path = ["model.name_or_path=x"] if option == "hf" else []
            found = node(compose("eval" if group in EVAL else "config", [f"{group}={option}", *path]), group)
            assert found is not None
            assert found["_target_"].startswith("forethought."), (group, option)


@pytest.mark.parametrize("path", ["./a folder", "../it's", "org/name", "~/x", "/tmp/a,b", r"./back\slash", "./new(1)=2"])
def test_a_path_or_hub_id_is_a_model(path: str) -> None:
    model = compose("config", [f"model={path}", "model.device=cpu"]).model
    assert (model.name_or_path, model.device) == (path, "cpu")


def test_values_reach_generate() -> None:
    config = compose("config", ["sampling=sample", "sampling.top_k=5", "max_tokens=9", "seed=null"])
    as_asked = {"chat": None, "parse_special": False}
    assert options(config) == {"temperature": 0.8, "top_p": 0.95, "top_k": 5, "max_tokens": 9} | as_asked
    config = compose("eval", ["chat.enable_thinking=false", "chat.tools=[a]", "parse_special=true"])
    assert options(config)["chat"] == {"enable_thinking": False, "tools": ["a"]}
    assert options(config)["parse_special"] is True


WRONG = {
    "strategy.stop=nope": "strategy/stop=nope: no such strategy/stop; there is first_accept",
    "decoder=nope": "decoder=nope: no such decoder; there is autoregressive",
    "model=nope": r"no such model; there is hf, nano, nano-draft, a folder \(./nope\)",
    "decoder=[a,b]": "one option at a time; to run several, --multirun decoder=a,b",
    "decoder=a,b": "several values need --multirun",
    "seed=1,2": "several values need --multirun",
    "~decoder": "there is always one decoder",
    "sampling.temprature=1": "no such setting; sampling has temperature, top_k",
    "model.devise=cpu": "no such setting; model has name_or_path, device",
    "bench.repeats=1": "no such setting; config has model, decoder, sampling, max_tokens, seed",
    "nonsense=1": "no such setting; config has model",
    "model=hf": "model.name_or_path has no value",
    "seed=${nowhere}": "nowhere",
    "max_tokens=(": "inside two pairs of quotes",
    "words": "'words' is not KEY=VALUE",
    "": "'' is not KEY=VALUE",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_overrides_say_what_is_right(override: str) -> None:
    with pytest.raises(ValueError, match=WRONG[override]) as raised:
        compose("eval" if override.startswith("strategy") else "config", [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.temperature=-1", "temperature=-1"),
        ("sampling.temperature=hot", "temperature='hot': a number"),
        ("sampling.temperature=nan", "temperature=nan"),
        ("sampling.top_p=true", "top_p=True: a number"),
        ("max_tokens=1.5", "max_tokens=1.5: a whole number"),
        ("seed=one", "seed='one': a whole number"),
    ],
)
def test_wrong_values_are_named(override: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        options(compose("config", [override]))


def test_a_component_speaks_for_itself() -> None:
    with pytest.raises(ValueError, match=r"bench.repeats=0"):
        build(compose("bench", ["bench.repeats=0"]).bench)
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        build(compose("config", ["+decoder.x=1"]).decoder)
    with pytest.raises(ValueError, match=r"os\.system|Instantiation"):
        build(compose("config", ["decoder._target_=os.system"]).decoder)


def test_expand_is_every_combination_in_order() -> None:
    assert expand(["decoder=autoregressive", "seed=1,2", "sampling.temperature=range(0,2)"]) == [
        ["decoder=autoregressive", f"seed={seed}", f"sampling.temperature={t}"] for seed in (1, 2) for t in (0, 1)
    ]
    assert expand([]) == [[]]
    assert expand(["model=nano,./a"]) == [["model=nano"], ["model=./a"]]
    assert expand(["sampling=glob(gr*)"]) == [["sampling=greedy"]]


@pytest.mark.parametrize("override", ["seed=interval(0,1)", "words", "seed=("])
def test_what_cannot_be_swept(override: str) -> None:
    with pytest.raises(ValueError, match=r"listed values|KEY=VALUE|quotes"):
        expand([override])


def test_a_checkpoint_is_found_from_here(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(checkpoint).parent)
    assert build(compose("config", ["model=./tiny"]).model).info.name == "tiny"
