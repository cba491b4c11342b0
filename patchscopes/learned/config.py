"""How lenses are fitted and trained, unless told otherwise. Nothing heavy is imported here."""

from dataclasses import dataclass

from patchscopes.errors import PatchscopesError

# The penalty on weights (see `Moments.solve`) unless told. A larger one gains nothing on held-out texts from 2,000
# positions on (embedded model, width 576), and keeps the last layer's map to itself from being the identity.
RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    The defaults are the settings of Belrose et al. 2023 for the Tuned Lens, except that a batch has 64 positions and
    not 2^18, which is no laptop's work, that AdamW stands in for their Adam, and that each part is clipped on its own.

    Attributes:
        optimizer: `sgd` with Nesterov momentum 0.9, or `adamw` with AMSGrad, β = (0.9, 0.999) and a warm-up over the
            first fifth of the steps (at most 1,000).
        learning_rate: at its largest; it decays linearly to 0 over the steps. That of `sgd` is multiplied by one minus
            the momentum, as in that paper. 1 for `sgd` and 0.001 for `adamw` unless given.
        gradient_clip: largest norm of each part's gradient.
        n_steps: at most.
        batch_size: representations a step.
        evaluate_every: steps between two measurements of the held-out loss.
        patience: measurements without any part's improvement after which training ends.
        seed: of the order of the data.
    """

    optimizer: str = "sgd"
    learning_rate: float | None = None
    weight_decay: float = 1e-3
    gradient_clip: float = 1.0
    n_steps: int = 250
    batch_size: int = 64
    evaluate_every: int = 25
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            raise PatchscopesError(f"optimizer must be 'sgd' or 'adamw', got {self.optimizer!r}")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", {"sgd": 1.0, "adamw": 1e-3}[self.optimizer])
        if min(self.n_steps, self.batch_size, self.evaluate_every, self.patience) < 1:
            raise PatchscopesError("n_steps, batch_size, evaluate_every and patience must be at least 1")


@dataclass(frozen=True, kw_only=True)
class JacobianLensConfig:
    """How to fit a Jacobian Lens.

    It costs `d_model` backward passes over all these tokens: with the defaults, minutes for the embedded model on two
    cores. TransformerLens's are 128 tokens of which 16 are left out, and published lenses saw up to 1,000 such texts.

    Attributes:
        n_texts: at most.
        max_tokens: of each text, from its start on.
        skip_first: tokens at the start that are left out, as attention sinks have unusual representations.
        dim_batch: dimensions of the output, and copies of the text in memory, at a time.
        seed: of the order of the texts.
    """

    n_texts: int = 16
    max_tokens: int = 32
    skip_first: int = 4
    dim_batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_texts, self.dim_batch) < 1 or not 0 <= self.skip_first < self.max_tokens - 1:
            raise PatchscopesError(
                "n_texts and dim_batch must be at least 1, and skip_first from 0 to max_tokens - 2; got "
                f"{self.n_texts}, {self.dim_batch}, {self.skip_first} of {self.max_tokens} tokens"
            )


# One of the generic contexts of Pal et al. 2023, section 3.3.
FIXED_PROMPT = 'Hello! Could you please tell me more about "'


# Tokens ahead that the prompt is trained on, and that the experiment asks for.
N_TOKENS = 3
N_TRAIN_SAMPLES = 400
SOFT_PROMPT_TRAINING = TrainingConfig(
    optimizer="adamw", learning_rate=1e-2, weight_decay=1e-5, n_steps=120, batch_size=32, evaluate_every=20
)
