from .backend.decoder import Decoder as Decoder
from .backend.engine import Engine as Engine
from .backend.generator import GenerationError as GenerationError
from .backend.generator import Generator as Generator
from .backend.generator import Score as Score
from .backend.load import load as load
from .backend.model import Model as Model
from .backend.request import Piece as Piece
from .backend.request import Sampling as Sampling
from .decoding.autoregressive import Autoregressive as Autoregressive
from .decoding.lookahead import Lookahead as Lookahead
from .decoding.prompt_lookup import PromptLookup as PromptLookup
from .decoding.speculative import Speculative as Speculative
from .schema import Candidate as Candidate
from .schema import Completion as Completion
from .schema import Cost as Cost
from .schema import Problem as Problem
from .schema import Solution as Solution
from .schema import Verdict as Verdict
from .search.best_of_n import BestOfN as BestOfN
from .verifiers.code import Code as Code
from .verifiers.generative import GenerativeVerifier as GenerativeVerifier
from .verifiers.maths import Maths as Maths
from .verifiers.process_reward import ProcessRewardModel as ProcessRewardModel
from .verifiers.reward import RewardModel as RewardModel
from .verifiers.verifier import StepScorer as StepScorer
from .verifiers.verifier import Verifier as Verifier

__version__: str
__all__: list[str]
