"""What a language model is and how it is trained, as typed settings."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pictish.configs import Config
from pictish.training.precision import MixedPrecision
from pictish.training.schedule import check_warmup


class NewModel(Config):
    """A transformers causal LM with random weights, and a byte-level BPE trained on the data."""

    renamed: ClassVar = {"pieces": "vocab_size"}

    kind: Literal["new"] = "new"
    architecture: str = Field("llama", description="transformers' `model_type`: llama, qwen3, gpt2, ...")
    settings: dict[str, Any] = Field(description="of transformers' config class, such as hidden_size")
    vocab_size: int = Field(2048, gt=256, description="size of the text vocabulary, 256 of it bytes")


class PretrainedModel(Config):
    """A folder as the hub has them: config.json, safetensors and text tokenizer of any causal LM."""

    kind: Literal["pretrained"] = "pretrained"
    folder: str
    lora: int | None = Field(
        None, gt=0, description="rank of LoRA adapters, which peft trains; merged when saved"
    )


class LanguageModelConfig(Config):
    """The language model and what it reads beside text."""

    base: Annotated[NewModel | PretrainedModel, Field(discriminator="kind")]
    features: bool = Field(False, description="whether pictures may also enter as continuous features")
    attn_implementation: Literal["eager", "sdpa"] | None = Field(
        None,
        description="of transformers, in training; eager is faster on short rows. none: transformers' own",
    )


class ImageGenerationConfig(Config):
    """How tokens of pictures are drawn unless the user says otherwise."""

    renamed: ClassVar = {"strays": "ignored_ids"}

    guidance: float = Field(
        2.0, ge=-100, le=100, description="how strictly words are followed; 1 adds nothing"
    )
    among_pictures: float | None = Field(
        None, ge=-100, le=100, description="the same where pictures are given too; none: no different"
    )
    image_guidance: float = Field(
        1.5, ge=-100, le=100, description="how strictly pictures are followed that are given"
    )
    guidance_ramp: float = Field(
        0.0, ge=0, description="power of the cosine ramp that guidance rises by over a picture; 0: none"
    )
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="how far guided logits get back their unguided standard deviation"
    )
    temperature: float = Field(0.5, ge=0, le=1000)
    top_k: int | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: int = Field(1, gt=0)
    max_tokens: int | None = Field(None, gt=0, description="none: as many as a picture may have")
    ignored_ids: tuple[int, ...] = Field(
        (), description="ids that may come between codes and are then left out, as LaVIT's"
    )


class BeamSearchConfig(Config):
    """How a text about a picture is written, by beam search, and where it is cut."""

    renamed: ClassVar = {
        "beams": "num_beams",
        "least": "min_new_tokens",
        "most": "max_new_tokens",
        "early": "early_stopping",
        "cuts": "stop_strings",
        "lower": "lowercase",
    }

    num_beams: int = Field(gt=0, description="1 takes the likeliest id each time")
    min_new_tokens: int = Field(ge=0, description="ids before a text may end")
    max_new_tokens: int = Field(gt=0)
    length_penalty: float = Field(1.0, description="scores are divided by length to this power")
    early_stopping: bool = Field(False, description="stop at as many ended texts as beams")
    stop_strings: tuple[str, ...] = Field((), description="a text ends before the first of these")
    lowercase: bool = Field(False, description="whether the text is made lower case")

    @model_validator(mode="after")
    def _fits(self) -> "BeamSearchConfig":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}"
            )
        return self


class DefaultsConfig(Config):
    """What a model does unless the user says otherwise."""

    drawing: ImageGenerationConfig = ImageGenerationConfig()
    caption: BeamSearchConfig | None = Field(None, description="none: the likeliest id each time, not cut")
    answer: BeamSearchConfig | None = None
    continuous: bool = Field(False, description="whether pictures to be described enter as features")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="score of kept patches of pictures in prompts; none: the tokenizer's"
    )


class DropoutConfig(Config):
    """How often a drawing or an edit loses its conditions, so that guidance has something to subtract."""

    text: float = Field(0.1, ge=0, le=1, description="the text alone")
    image: float = Field(0.05, ge=0, le=1, description="the source picture alone, in edits")
    both: float = Field(0.05, ge=0, le=1, description="text and source picture, in edits")

    @model_validator(mode="after")
    def _at_most_all(self) -> "DropoutConfig":
        if self.text + self.image + self.both > 1:
            raise ValueError(f"dropout: text + image + both is {self.text + self.image + self.both}, above 1")
        return self

    def none(self) -> "DropoutConfig":
        """The same with nothing dropped: for validation."""
        return DropoutConfig(text=0, image=0, both=0)


class SourceConfig(Config):
    """Shards or picture folders, how often they are drawn from, and what their samples become."""

    paths: tuple[str, ...] = Field(description="shards, patterns of shards, or folders")
    weight: float = Field(1.0, gt=0)
    caption_key: str | None = Field(
        None, description="field of a sample's JSON that holds its captions; none: .txt and known fields"
    )
    caption: float = Field(0.5, ge=0, le=1, description="share of picture-and-text pairs read picture first")
    continuous: float = Field(
        0.0, ge=0, le=1, description="share of captions and answers whose picture enters as features"
    )


class DataConfig(Config):
    """What is read, in which rows."""

    renamed: ClassVar = {"accumulate": "gradient_accumulation_steps"}

    train: dict[str, SourceConfig]
    validation: dict[str, SourceConfig] = Field({}, description="sources of documents to measure on")
    length: int = Field(512, gt=8, description="tokens a row")
    rows: int = Field(8, gt=0, description="rows a step, of all lanes together")
    lanes: int = Field(
        4, gt=0, description="streams that a step takes its rows from; as many processes as divide it fit"
    )
    gradient_accumulation_steps: int = Field(1, gt=0, description="forwards a step and process")
    read_ahead: bool = Field(True, description="read and tokenize in a thread while the model computes")
    strict: bool = Field(False, description="stop at the first damaged sample")


class StageConfig(Config):
    """One stretch of training: pre-training, instruction tuning, ..."""

    name: str
    steps: int = Field(gt=0)
    trainable: tuple[str, ...] = Field(
        ("*",), description="patterns of parameter names; `new rows` means the rows that widening added"
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="weights of sources in this stage; 0 leaves one out"
    )
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    final_rate: float = Field(0.1, ge=0, description="learning rate at the end, as a share of the peak")

    @model_validator(mode="after")
    def _warmup_ends(self) -> "StageConfig":
        check_warmup(self.warmup, self.steps)
        return self


class NeighborsConfig(Config):
    """Soft targets: a share of each code's target goes to the codes with the nearest vectors."""

    share: float = Field(0.1, gt=0, lt=1, description="of the target that neighbors get together")
    temperature: float = Field(
        1.0, gt=0, description="of the softmax over distances, whose unit is a usual nearest neighbor's"
    )
    count: int = Field(8, gt=0, description="neighbors of a code")


class Autoregressive(Config):
    """Each token from those before it."""

    kind: Literal["autoregressive"] = "autoregressive"
    corrupt: float = Field(
        0.0, ge=0, le=1, description="codes of a picture to draw that are read wrong in training, at most"
    )
    corrupt_anneal: float = Field(
        0.0, ge=0, le=1, description="share of training over which `corrupt` falls linearly to 0; 0: never"
    )
    neighbors: NeighborsConfig | None = Field(None, description="soft targets; none: one-hot ones")
    alignment: float = Field(
        0.0, ge=0, description="weight of the heads that find code vectors in the model's states; 0: no heads"
    )

    def none(self) -> "Autoregressive":
        """The same with nothing read wrong, one-hot targets and no heads: for validation."""
        return Autoregressive()


class TrainConfig(Config):
    """An experiment: `pictish train lm CONFIG`."""

    part: Literal["lm"] = "lm"
    model: LanguageModelConfig
    tokenizer: str = Field("starter", description="whose codes are learned: a folder or a shipped name")
    objective: Annotated[Autoregressive, Field(discriminator="kind")] = Autoregressive()
    dropout: DropoutConfig = DropoutConfig()
    data: DataConfig
    stages: tuple[StageConfig, ...]
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices of the layers; AdamW for the rest"
    )
    weight_decay: float = Field(0.05, ge=0, description="of matrices; embeddings, norms and biases have none")
    clip_norm: float = Field(1.0, gt=0)
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="share of attention weights")
    hidden_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of embeddings, and of what each attention and MLP block adds"
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the weights' average, which is what is saved; 0: no average"
    )
    checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")
    seed: int = Field(0, ge=0, lt=2**63)
    log_every: int = Field(20, gt=0)
    validate_every: int = Field(500, gt=0)
    sample_every: int = Field(0, ge=0, description="steps between drawn sample pictures; 0 for none")
    samples: tuple[str, ...] = Field((), description="texts to draw then")
    checkpoint_every: int = Field(500, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    tensorboard: bool = False
    mixed_precision: MixedPrecision = Field(
        "no", description="auto: bf16 where the processor or GPU has units for it, else no"
    )
    stored_as: Literal["float32", "float16", "bfloat16"] = "float16"

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if not self.stages:
            raise ValueError("stages: one or more are needed, none was given")
        for name in ("lanes", "gradient_accumulation_steps"):
            if self.data.rows % (count := getattr(self.data, name)):
                raise ValueError(f"data.rows {self.data.rows} is no multiple of data.{name}, {count}")
        for name, source in {**self.data.train, **self.data.validation}.items():
            if source.continuous and not self.model.features:
                raise ValueError(
                    f"source {name}: continuous is {source.continuous}, which takes model.features: true"
                )
        for stage in self.stages:
            strange = sorted(set(stage.weights) - set(self.data.train))
            if strange:
                known = ", ".join(sorted(self.data.train))
                raise ValueError(f"stage {stage.name}: no source is called {strange[0]}; there are {known}")
            if all(stage.weights.get(name) == 0 for name in self.data.train):
                raise ValueError(f"stage {stage.name}: all its sources have weight 0")
        return self
