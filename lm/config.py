"""What a language model is and how it is trained, as typed settings."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pictish.configs import Config
from pictish.lm.vision.config import VisionConfig
from pictish.training.precision import MixedPrecision
from pictish.training.schedule import check_warmup


class NewModel(Config):
    """A transformers causal LM with random weights, and a byte-level BPE trained on the data."""

    renamed: ClassVar = {"pieces": "vocab_size"}

    kind: Literal["new"] = "new"
    architecture: str = Field("llama", description="transformers' `model_type`: llama, qwen3, gpt2, ...")
    settings: dict[str, Any] = Field(description="of transformers' config class, such as hidden_size")
    vocab_size: int = Field(2048, gt=256, description="size of the text vocabulary, 256 of it bytes")
    chat: bool = Field(False, description="whether it has marks of turns, and a chat template for dialogues")


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
    features: bool = Field(False, description="whether images may also enter as continuous features")
    vision: VisionConfig | None = Field(
        None, description="the tower that such features come from; none: the image tokenizer's, or the base's"
    )
    attn_implementation: Literal["eager", "sdpa"] | None = Field(
        None,
        description="of transformers, in training; eager is faster on short rows. none: transformers' own",
    )
    cell_positions: bool | None = Field(
        None,
        description="whether positions count the cells that skips pass over, by which images are learned "
        "faster; false: tokens alone, as transformers' own generate does. none: as the base does; new: true",
    )


class AdaptorConfig(Config):
    """An inner adaptor that is trained beside a frozen base, see lm/adaptors.py."""

    kind: str = Field("general", description="what it is for, in a word: general, grounding, code, ...")
    points: tuple[int, ...] | None = Field(
        None, description="base layers with a layer of the adaptor behind them; none: two of every five"
    )
    start: Literal["identity", "copy"] = Field(
        "identity", description="layers that change nothing at first, or copies of the base's"
    )
    table: Literal["own", "tied"] = Field("own", description="embedding table; tied: the base's")
    norm: Literal["own", "tied"] = Field("own", description="final norm; tied: the base's")
    head: Literal["own", "tied"] = Field("own", description="head; tied: the base's")


class ImageGenerationConfig(Config):
    """How tokens of images are drawn unless the user says otherwise."""

    renamed: ClassVar = {"strays": "ignored_ids"}

    guidance: float = Field(
        2.0, ge=-100, le=100, description="how strictly words are followed; 1 adds nothing"
    )
    among_pictures: float | None = Field(
        None, ge=-100, le=100, description="the same where images are given too; none: no different"
    )
    image_guidance: float = Field(
        1.5, ge=-100, le=100, description="how strictly images are followed that are given"
    )
    guidance_ramp: float = Field(
        0.0, ge=0, description="power of the cosine ramp that guidance rises by over an image; 0: none"
    )
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="how far guided logits get back their unguided standard deviation"
    )
    temperature: float = Field(0.5, ge=0, le=1000)
    top_k: int | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    best_of: int = Field(
        1,
        ge=1,
        le=64,
        description="of a text prompt, the candidates drawn; that most likely captioned with it is kept",
    )
    min_tokens: int = Field(1, gt=0)
    max_tokens: int | None = Field(None, gt=0, description="none: as many as an image may have")
    ignored_ids: tuple[int, ...] = Field(
        (), description="ids that may come between codes and are then left out, as LaVIT's"
    )


class BeamSearchConfig(Config):
    """How a text about an image is written, by beam search, and where it is cut."""

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


class MaskedCache(Config):
    """What a masked model keeps from one forward to the next, see lm/masked_cache.py."""

    kind: Literal["none", "prefix", "dual", "interval"] = "none"
    refresh: int | None = Field(
        None, gt=0, description="of prefix and dual: forwards until all is computed again; none: a block"
    )
    prompt_interval: int = Field(25, gt=0, description="of interval: forwards until the prompt is computed")
    answer_interval: int = Field(7, gt=0, description="of interval: forwards until the answer is computed")
    ratio: float = Field(
        0.25, ge=0, le=1, description="of interval: share of the answer that is computed in between"
    )


class FillingConfig(Config):
    """How a masked model fills masks unless the user says otherwise."""

    steps: int = Field(16, gt=0, description="of an image, or of each block of a text")
    schedule: Literal["linear", "cosine"] = Field(
        "linear", description="how many masks each step fills: as many in each, or few at first"
    )
    remasking: Literal["low_confidence", "random", "halton"] = Field(
        "low_confidence", description="which stay masked; halton: by a fixed order of the cells of an image"
    )
    threshold: float | None = Field(
        None, gt=0, le=1, description="confidence that fills a mask whatever the schedule says"
    )
    correction: float | None = Field(
        None, gt=0, le=1, description="confidence that replaces an id already written"
    )
    cache: MaskedCache = MaskedCache()


class TextFillingConfig(FillingConfig):
    """How a masked model writes a text: in blocks, until it ends."""

    block_length: int = Field(16, gt=0, description="masks that are added at a time")
    stop_strings: tuple[str, ...] = Field((), description="a text ends before the first of these")

    @model_validator(mode="after")
    def _no_grid(self) -> "TextFillingConfig":
        if self.remasking == "halton":
            raise ValueError("remasking: halton is an order of cells; a text would fit low_confidence")
        return self


class MaskedDefaults(Config):
    """What a masked model does unless the user says otherwise."""

    pictures: FillingConfig = FillingConfig(schedule="cosine", remasking="halton")
    texts: TextFillingConfig = TextFillingConfig()
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="from which to which filled share of an image it is guided"
    )


class DefaultsConfig(Config):
    """What a model does unless the user says otherwise."""

    drawing: ImageGenerationConfig = ImageGenerationConfig()
    masked: MaskedDefaults | None = Field(None, description="of a masked model; none: its usual ones")
    caption: BeamSearchConfig | None = Field(None, description="none: the likeliest id each time, not cut")
    answer: BeamSearchConfig | None = None
    continuous: bool = Field(False, description="whether images to be described enter as features")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="score of kept patches of images in prompts; none: the tokenizer's"
    )

    @property
    def filling(self) -> MaskedDefaults:
        """How a masked model samples."""
        return self.masked or MaskedDefaults()


class DropoutConfig(Config):
    """How often a drawing or an edit loses its conditions, so that guidance has something to subtract."""

    text: float = Field(0.1, ge=0, le=1, description="the text alone")
    image: float = Field(0.05, ge=0, le=1, description="the source image alone, in edits")
    both: float = Field(0.05, ge=0, le=1, description="text and source image, in edits")

    @model_validator(mode="after")
    def _at_most_all(self) -> "DropoutConfig":
        if self.text + self.image + self.both > 1:
            raise ValueError(f"dropout: text + image + both is {self.text + self.image + self.both}, above 1")
        return self

    def none(self) -> "DropoutConfig":
        """The same with nothing dropped: for validation."""
        return DropoutConfig(text=0, image=0, both=0)


class SourceConfig(Config):
    """Shards or image folders, how often they are drawn from, and what their samples become."""

    paths: tuple[str, ...] = Field(description="shards, patterns of shards, or folders")
    weight: float = Field(1.0, gt=0)
    caption_key: str | None = Field(
        None, description="field of a sample's JSON that holds its captions; none: .txt and known fields"
    )
    caption: float = Field(0.5, ge=0, le=1, description="share of image-and-text pairs read image first")
    continuous: float = Field(
        0.0, ge=0, le=1, description="share of captions and answers whose image enters as features"
    )
    system: str | None = Field(None, description="message that begins dialogues which have no system message")
    turn_suffix: str = Field("", description="added to what users say in dialogues, such as ' /think'")
    turn_suffix_share: float = Field(1.0, ge=0, le=1, description="share of their messages that get it")


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
    vision_learning_rate: float | None = Field(
        None, gt=0, description="of the vision tower; none: learning_rate"
    )
    tiles: bool = Field(True, description="whether images are seen in tiles, if model.vision has them")
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
        0.0, ge=0, le=1, description="codes of an image to draw that are read wrong in training, at most"
    )
    corrupt_anneal: float = Field(
        0.0, ge=0, le=1, description="share of training over which `corrupt` falls linearly to 0; 0: never"
    )
    corrupt_all: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of documents whose codes are all read wrong: words, source image, cells are left",
    )
    corrupt_foreign: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of images whose wrong codes are those of another image; of the rest, any codes",
    )
    neighbors: NeighborsConfig | None = Field(None, description="soft targets; none: one-hot ones")
    alignment: float = Field(
        0.0, ge=0, description="weight of the heads that find code vectors in the model's states; 0: no heads"
    )

    def none(self) -> "Autoregressive":
        """The same with nothing read wrong, one-hot targets and no heads: for validation."""
        return Autoregressive()


class MaskedForm(Config):
    """What tokens of a masked model see of each other, in training and in sampling."""

    attention: Literal["full", "dialogue", "prefix"] = Field(
        "full",
        description="full: a document sees all of itself; dialogue: no turn sees a later one; prefix: nor "
        "does a prompt see its answer",
    )
    block_length: int | None = Field(
        None,
        gt=0,
        description="block diffusion: block size in tokens. Each block is predicted from the complete "
        "earlier blocks, and each image is one block; requires attention: prefix. none: no blocks",
    )

    @model_validator(mode="after")
    def _blocks_see_back(self) -> "MaskedForm":
        if self.block_length is not None and self.attention != "prefix":
            raise ValueError(
                f"block_length {self.block_length} with attention {self.attention}; "
                "attention: prefix would fit"
            )
        return self


class Masked(MaskedForm):
    """Masked ids from all others, at any share of masks (LLaDA-V: arXiv 2505.16933)."""

    kind: Literal["masked"] = "masked"
    structure: bool = Field(
        False, description="learn the marks between contents too, those of prompts included, as LLaDA-V does"
    )
    end_padding: int = Field(
        1, gt=0, description="texts are learned with end-of-text ids behind them, up to a multiple of this"
    )
    complementary: bool = Field(
        False, description="each document twice a step: what one view masks, the other shows"
    )
    corrupt: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of visible ids to be learned that are read wrong, and as many that are read right "
        "and learned as they are: the model can then correct what it wrote",
    )

    @property
    def form(self) -> MaskedForm:
        """What the sampler must know."""
        return MaskedForm(attention=self.attention, block_length=self.block_length)

    def none(self) -> "Masked":
        """The same with nothing read wrong and each document once: for validation."""
        return self.model_copy(update={"corrupt": 0.0, "complementary": False})


class Preference(Config):
    """Preferred answers or drawings made likelier than others to the same prompt (DPO: arXiv 2305.18290)."""

    kind: Literal["preference"] = "preference"
    beta: float = Field(
        0.1, gt=0, description="how strongly the model is held to the one that training starts from"
    )
    length_normalized: bool = Field(
        False, description="compare mean instead of summed log-probabilities; with a larger beta, such as 5"
    )

    def none(self) -> "Preference":
        """The same: for validation."""
        return self


class TrainConfig(Config):
    """An experiment: `pictish train lm CONFIG`."""

    part: Literal["lm"] = "lm"
    model: LanguageModelConfig
    adaptor: AdaptorConfig | None = Field(
        None, description="an inner adaptor, which alone is trained and saved; none: the model itself is"
    )
    tokenizer: str | None = Field(
        "starter",
        description="whose codes are learned: a folder or a shipped name; none: images are only seen",
    )
    objective: Annotated[Autoregressive | Masked | Preference, Field(discriminator="kind")] = Autoregressive()
    dropout: DropoutConfig = DropoutConfig()
    data: DataConfig
    stages: tuple[StageConfig, ...]
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices of the layers; AdamW for the rest"
    )
    beta2: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="decay of AdamW's second moment; closer to 1 for few tokens a step (arXiv 2507.07101)",
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
    sample_every: int = Field(0, ge=0, description="steps between drawn sample images; 0 for none")
    samples: tuple[str, ...] = Field((), description="texts to draw then")
    checkpoint_every: int = Field(500, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    tensorboard: bool = Field(False, description="write the metrics to RUN/tensorboard too")
    wandb: bool = Field(False, description="log the metrics to Weights & Biases too, in project pictish")
    mixed_precision: MixedPrecision = Field(
        "no", description="auto: bf16 where the processor or GPU has units for it, else no"
    )
    stored_as: Literal["float32", "float16", "bfloat16"] = "float16"

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if not self.stages:
            raise ValueError("stages: one or more are needed, none was given")
        if self.adaptor is not None and (self.model.base.kind != "pretrained" or self.model.base.lora):
            raise ValueError(
                "adaptor: its base is a pretrained model without lora; model.base says otherwise"
            )
        if isinstance(self.objective, Preference) and self.model.base.kind != "pretrained":
            raise ValueError(
                "objective.kind: preference tunes a trained model; "
                "model.base: {kind: pretrained, folder: ...} would fit"
            )
        for name in ("lanes", "gradient_accumulation_steps"):
            if self.data.rows % (count := getattr(self.data, name)):
                raise ValueError(f"data.rows {self.data.rows} is no multiple of data.{name}, {count}")
        for name, source in {**self.data.train, **self.data.validation}.items():
            if source.continuous and not (self.model.features or self.model.vision):
                raise ValueError(
                    f"source {name}: continuous is {source.continuous}, which takes model.features: true, or "
                    "model.vision"
                )
        if self.tokenizer is None and self.model.features:
            raise ValueError(
                "model.features are an image tokenizer's, and tokenizer is none; vision would fit"
            )
        for stage in self.stages:
            strange = sorted(set(stage.weights) - set(self.data.train))
            if strange:
                known = ", ".join(sorted(self.data.train))
                raise ValueError(f"stage {stage.name}: no source is called {strange[0]}; there are {known}")
            if all(stage.weights.get(name) == 0 for name in self.data.train):
                raise ValueError(f"stage {stage.name}: all its sources have weight 0")
        return self
